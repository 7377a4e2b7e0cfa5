import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from figureground.cli import main
from figureground.errors import UsageError
from figureground.stages.semantic_retrieve import SemanticRetrieveResult, configure, nearest, run, vote
from tests.stages.kinds import SIZE, write_kinds

FAST = ["size=96", "shard_size=4", "resamples=50"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_kinds(folder / "train", 9)
    write_kinds(folder / "val", 6, 100)
    return folder


def retrieve(scenes: Path, out: Path, *assignments: str, **more: Any) -> SemanticRetrieveResult:
    options = {
        "backbone": {"name": "handcrafted"},
        "train": str(scenes / "train/truth"),
        "train_masks": str(scenes / "train/run"),
        "val": str(scenes / "val/truth"),
        "val_masks": str(scenes / "val/run"),
        **more,
    }
    return run(configure([*FAST, *assignments], **options), out)


def test_each_kind_finds_its_own(scenes: Path, tmp_path: Path) -> None:
    result = retrieve(scenes, tmp_path, "shown=2")
    assert (result.images, result.segments, result.gallery, result.right) == (6, 6, 9, 100)
    assert (result.miou.value, result.miou.low) == (100, 100)
    page = (tmp_path / "report.html").read_text()
    assert page.count('<div class="query">') == 6
    assert page.count('<figure class="right">') == 12
    assert page.count('<figure class="wrong">') == 0


def test_only_some_classes(scenes: Path, tmp_path: Path) -> None:
    result = retrieve(scenes, tmp_path, 'only=["leaf","pool"]', "neighbours=3")
    assert (result.gallery, result.segments, result.right) == (6, 6, 100)
    assert result.per_class == {"background": 100, "brick": None, "leaf": 100, "pool": 100}
    with pytest.raises(UsageError, match="`only` names 'cow'"):
        retrieve(scenes, tmp_path / "x", 'only=["cow"]')


def test_a_class_that_no_labelled_segment_has(scenes: Path, tmp_path: Path) -> None:
    write_kinds(tmp_path, 2)
    result = retrieve(scenes, tmp_path / "out", train=str(tmp_path / "truth"), train_masks=str(tmp_path / "run"))
    assert "No labelled segment is pool: it cannot be found." in result.notes
    assert result.per_class["pool"] == 0
    assert result.right == pytest.approx(400 / 6, abs=1e-3)


def test_bad_input(scenes: Path, tmp_path: Path) -> None:
    write_kinds(tmp_path, 3)
    (tmp_path / "truth/classes.json").write_text(json.dumps({"classes": ["background", "brick", "leaf", "lake"]}))
    with pytest.raises(UsageError, match="differ in their classes"):
        retrieve(scenes, tmp_path / "out", train=str(tmp_path / "truth"))
    with pytest.raises(UsageError, match="--train is missing"):
        retrieve(scenes, tmp_path / "out", train=None)
    assert not (tmp_path / "out").exists()
    (tmp_path / "truth/classes.json").write_text(json.dumps({"classes": ["background", "brick", "leaf", "pool"]}))
    for path in (tmp_path / "truth/maps").iterdir():
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    ground = {"train": str(tmp_path / "truth"), "train_masks": str(tmp_path / "run")}
    with pytest.raises(UsageError, match="None of the 3 segments of the training images has a class"):
        retrieve(scenes, tmp_path / "out", **ground)
    with pytest.raises(SystemExit) as caught:
        main(["semantic", "retrieve", "--backbone", "handcrafted"])
    assert caught.value.code == 2


def test_nearest_and_votes() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(5, 4)), rng.normal(size=(7, 4))
    slow = [sorted(range(7), key=lambda place: -float(query @ gallery[place]))[:3] for query in queries]
    np.testing.assert_array_equal(nearest(queries, gallery, 3), slow)
    assert vote(np.array([[1, 2, 2], [3, 1, 2], [0, 0, 5]])).tolist() == [2, 3, 0]
