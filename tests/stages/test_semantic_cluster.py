"""`semantic cluster`, `probe` and `retrieve` from pictures of a few kinds to numbers and pages."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from figureground.cli import main
from figureground.data.coco import write_coco
from figureground.data.semantic_truth import NO_CLASS, read_class_map
from figureground.errors import ConfigError, RunError, UsageError
from figureground.evaluation.semantic_miou import confusion_matrix
from figureground.segmenters import checkpoint
from figureground.segmenters.maskcontrast import Segmenter, SegmenterConfig, TransformerConfig
from figureground.stages.semantic_cluster import SemanticClusterResult, _projected, configure, run
from figureground.stages.semantic_features import Embedder, find_photographs
from tests.reference import semantic as slow
from tests.stages.kinds import SIZE, write_kinds
from tests.stages.labelled import edit

FAST = ["size=96", "shard_size=4", "resamples=50"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_kinds(folder / "train", 9)
    write_kinds(folder / "val", 6, 100)
    return folder


def options(scenes: Path, **more: Any) -> dict[str, Any]:
    return {
        "backbone": {"name": "handcrafted"},
        "train": [str(scenes / "train/run")],
        "val": str(scenes / "val/truth"),
        "val_masks": str(scenes / "val/run"),
        **more,
    }


def cluster(scenes: Path, out: Path, *assignments: str, **more: Any) -> SemanticClusterResult:
    return run(configure([*FAST, *assignments], **options(scenes, **more)), out)


def measured_again(out: Path, truth: Path, classes: int) -> list[float | None]:
    """The IoU of each class from the maps on disk, by the slow reference."""
    maps = [read_class_map(path).astype(int) for path in sorted((out / "maps").glob("*.png"))]
    true = [read_class_map(path) for path in sorted((truth / "maps").glob("*.png"))]
    assert len(maps) == len(true)
    return [slow.iou_of(np.stack(maps), np.stack(true), number, 255) for number in range(classes)]


def test_kinds_are_found_without_any_training(scenes: Path, tmp_path: Path) -> None:
    result = cluster(scenes, tmp_path)
    assert (result.images, result.segments, result.fitted, result.clusters, result.failed) == (6, 6, 9, 3, 0)
    assert (result.matching, result.fit_on, result.miou.value, result.purity, result.nmi) == (
        "hungarian",
        "train",
        100,
        100,
        100,
    )
    assert list(result.per_class) == ["background", "brick", "leaf", "pool"]
    assert measured_again(tmp_path, scenes / "val/truth", 4) == [1, 1, 1, 1]
    facts = json.loads((tmp_path / "result.json").read_text())
    assert facts["miou"] == {"value": 100, "low": 100, "high": 100}
    assert [entry["segments"] for entry in facts["by_cluster"]] == [0, 2, 2, 2]
    with Image.open(tmp_path / "maps/100.png") as image:
        assert (image.mode, image.size) == ("P", SIZE[::-1])
    page = (tmp_path / "report.html").read_text()
    assert page.count('<li data-classes="') == 6
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "Fitted on the images that are measured" not in page


def test_numbers_agree_with_the_maps(scenes: Path, tmp_path: Path) -> None:
    # Two clusters for three kinds: what is wrong is as the slow reference has it.
    result = cluster(scenes, tmp_path, "seeds=[0]", "resamples=0", k=2)
    expected = measured_again(tmp_path, scenes / "val/truth", 4)
    assert list(result.per_class.values()) == pytest.approx(
        [None if v is None else 100 * v for v in expected], abs=1e-3
    )
    assert result.miou.value == pytest.approx(100 * np.mean([value for value in expected if value is not None]))
    assert result.miou.low is None
    assert result.miou.value < 90


def test_more_clusters_than_classes_are_matched_many_to_one(scenes: Path, tmp_path: Path) -> None:
    many = cluster(scenes, tmp_path / "many", k=6)
    assert (many.matching, many.miou.value) == ("majority", 100)
    assert "many to one" in " ".join(many.notes)
    one = cluster(scenes, tmp_path / "one", "matching=hungarian", k=6)
    assert one.miou.value is not None
    assert one.miou.value < 100
    found = np.stack([read_class_map(path) for path in sorted((tmp_path / "one/maps").glob("*.png"))])
    assert NO_CLASS in np.unique(found)


def test_number_by_the_silhouette_and_the_published_protocol(scenes: Path, tmp_path: Path) -> None:
    result = cluster(scenes, tmp_path, "pca=4", train=None, fit_on="val", k="auto")
    assert (result.fitted, result.fit_on) == (6, "val")
    assert list(result.silhouettes) == [2, 3, 4, 5]
    assert "Fitted on the images that are measured" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "train").exists()


def test_what_label_finds_is_segmented_and_drawn_to_the_edges(scenes: Path, tmp_path: Path) -> None:
    result = cluster(
        scenes,
        tmp_path,
        "label.method=centred_box",
        "crf=true",
        "dense_crf.iterations=3",
        train=[str(scenes / "train/truth")],
        val_masks=None,
    )
    assert (result.segments, result.fitted) == (6, 9)
    assert result.miou.value is not None
    box = cluster(
        scenes,
        tmp_path / "box",
        "label.method=centred_box",
        train=[str(scenes / "train/truth/images")],
        val_masks=None,
    )
    # A box is not a disc; its corners are drawn away.
    assert box.miou.value is not None
    assert result.miou.value > box.miou.value


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small transformer to which everything is object."""
    torch.manual_seed(0)
    shape = TransformerConfig(patch_size=8, image_size=32, width=32, depth=1, heads=2)
    segmenter = Segmenter(SegmenterConfig(arch="vit", vit=shape, width=8))
    with torch.no_grad():
        segmenter.saliency.weight.fill_(1)
    (tmp_path / "model").mkdir()
    checkpoint.save(tmp_path / "model" / checkpoint.FILE, segmenter)
    return tmp_path / "model"


def test_a_trained_segmenter(scenes: Path, model: Path, tmp_path: Path) -> None:
    more = {"backbone": None, "model": str(model), "val_masks": None}
    result = cluster(scenes, tmp_path / "out", **more)
    assert (result.segments, result.fitted, result.clusters) == (6, 9, 3)
    found = np.stack([read_class_map(path) for path in sorted((tmp_path / "out/maps").glob("*.png"))])
    assert len({int(number) for picture in found for number in np.unique(picture)}) <= 3
    assert all(len(np.unique(picture)) == 1 for picture in found)
    # Its embeddings in the masks of runs.
    masked = {**more, "val_masks": str(scenes / "val/run")}
    in_masks = cluster(scenes, tmp_path / "masks", "foreground=masks", "segments=instances", **masked)
    assert in_masks.per_class["background"] == 100
    # Another model under the same name is another run.
    weights = checkpoint.load(model)
    with torch.no_grad():
        weights.embedding.weight.mul_(2)
    checkpoint.save(model / checkpoint.FILE, weights)
    with pytest.raises(ConfigError, match=r"digests\.model"):
        cluster(scenes, tmp_path / "out", **more)


def test_goes_on_after_a_kill_and_is_the_same(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cluster(scenes, tmp_path / "whole")
    embed, seen = Embedder.__call__, []

    def die(self: Embedder, *arguments: Any) -> Any:
        seen.append(1)
        if len(seen) > 11:
            raise KeyboardInterrupt
        return embed(self, *arguments)

    monkeypatch.setattr(Embedder, "__call__", die)
    with pytest.raises(KeyboardInterrupt):
        cluster(scenes, tmp_path / "killed")
    monkeypatch.setattr(Embedder, "__call__", embed)
    again = cluster(scenes, tmp_path / "killed")
    assert (again.resumed, again.miou, again.per_class) == (9, whole.miou, whole.per_class)
    for path in (tmp_path / "whole/maps").iterdir():
        assert path.read_bytes() == (tmp_path / "killed/maps" / path.name).read_bytes()
    with pytest.raises(ConfigError, match="k: null -> 2"):
        cluster(scenes, tmp_path / "killed", k=2)


def test_bad_input(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="10 clusters cannot be made of 9 segments"):
        cluster(scenes, tmp_path / "a", k=10)
    for wrong, said in (
        ({"val": None}, "--val is missing: there is no truth"),
        ({"val": str(scenes)}, r"it has no classes\.json"),
        ({"train": None}, "--train is missing"),
        ({"val_masks": str(tmp_path)}, "has no annotations.json"),
        ({"backbone": None}, "Give either a MODEL"),
        ({"k": "many"}, "number of clusters or `auto`"),
    ):
        with pytest.raises(UsageError, match=said):
            cluster(scenes, tmp_path / "b", **wrong)
    with pytest.raises(ConfigError, match="saliency needs a MODEL"):
        cluster(scenes, tmp_path / "b", "foreground=saliency")
    with pytest.raises(ConfigError, match="foreground=masks needs a run"):
        cluster(scenes, tmp_path / "b", "foreground=masks", val_masks=None)
    with pytest.raises(UsageError, match="has no mask"):
        cluster(scenes, tmp_path / "b", train=[empty_run(tmp_path)])
    # What would be asked for and not looked at.
    with pytest.raises(ConfigError, match=r"Masks of a run are given, but the foreground is `label`"):
        cluster(scenes, tmp_path / "b", "foreground=label")
    with pytest.raises(ConfigError, match=r"Masks of a run are given, but the foreground is `saliency`"):
        cluster(scenes, tmp_path / "b", backbone=None, model=str(tmp_path))
    with pytest.raises(ConfigError, match=r"label\.\* is set, but the foreground is not `label`"):
        cluster(scenes, tmp_path / "b", "label.method=centred_box", train_masks=str(scenes / "train/run"))
    assert not (tmp_path / "b").exists()


def test_whitening_leaves_out_directions_that_no_vector_has() -> None:
    """Ten vectors span nine directions around their mean; the noise in a tenth would drown all that is measured."""
    vectors = np.random.default_rng(0).normal(size=(15, 32))
    fitted, measured = _projected(vectors[:10], vectors[10:], 32)
    assert fitted.shape == (10, 9)
    assert np.abs(measured).max() < 10
    alone, others = _projected(vectors[:1], vectors[1:], 32)
    assert np.isfinite(alone).all()
    assert len(others) == 14


def test_the_images_of_a_truth_can_be_elsewhere(scenes: Path, tmp_path: Path) -> None:
    """As those of a run can."""
    (tmp_path / "elsewhere").mkdir()
    for picture in (scenes / "train/truth/images").iterdir():
        (tmp_path / "elsewhere" / picture.name).write_bytes(picture.read_bytes())
    found = find_photographs([str(scenes / "train/truth")], str(tmp_path / "elsewhere"), tmp_path / "out")
    assert found.images.root == tmp_path / "elsewhere"


def empty_run(folder: Path) -> str:
    (folder / "empty").mkdir()
    images: list[Any] = [{"file_name": "000.png", "height": SIZE[0], "width": SIZE[1], "annotations": []}]
    write_coco(folder / "empty/annotations.json", lambda: images, "empty")
    (folder / "empty/result.json").write_text(json.dumps({"image_root": str(folder)}))
    return str(folder / "empty")


def test_a_truth_that_misses_a_class(tmp_path: Path) -> None:
    write_kinds(tmp_path, 6)
    (tmp_path / "truth/classes.json").write_text(json.dumps({"classes": ["background", "brick", "leaf"]}))
    wrong = {"val": str(tmp_path / "truth"), "val_masks": str(tmp_path / "run"), "train": [str(tmp_path / "run")]}
    with pytest.raises(UsageError, match=r"holds the class numbers 3, which .*classes\.json does not name"):
        run(configure(FAST, backbone={"name": "handcrafted"}, **wrong), tmp_path / "out")


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    write_kinds(tmp_path, 6)
    edit(tmp_path / "run", lambda all_: all_["images"].pop())
    edit(tmp_path / "run", lambda all_: all_["annotations"].pop())
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "truth/maps/001.png")
    values = {"val": str(tmp_path / "truth"), "val_masks": str(tmp_path / "run"), "train": [str(tmp_path / "run")]}
    config = configure([*FAST, "k=2"], backbone={"name": "handcrafted"}, **values)
    result = run(config, tmp_path / "out")
    assert (result.images, result.failed) == (4, 2)
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [failure["path"] for failure in failures] == ["001.png", "005.png"]
    assert "5x5 px, but the image 72x96" in failures[0]["error"]
    assert "does not list the image" in failures[1]["error"]
    for path in (tmp_path / "truth/maps").iterdir():
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(path)
    config = configure([*FAST, "k=2"], backbone={"name": "handcrafted"}, **values)
    with pytest.raises(RunError, match="None of the images of the truth could be used"):
        run(config, tmp_path / "other")


def test_the_command(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["semantic", "cluster", "--backbone", "handcrafted", "--train", str(scenes / "train/run")]
    arguments += ["--val", str(scenes / "val/truth"), "--set", f"val_masks={scenes / 'val/run'}", "--set", "size=96"]
    for more, code in (
        (["--out", str(tmp_path / "out")], 0),
        ([], 2),
        (["--out", str(tmp_path / "x"), "--k", "99"], 2),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, *more])
        assert (caught.value.code or 0) == code
    said = capsys.readouterr()
    assert "mIoU 100.0 % (100.0 to 100.0, 95 %), 3 clusters fitted on 9 segments of train" in said.out
    assert "99 clusters cannot be made of 9 segments" in said.err


def test_counts_of_records_are_those_of_pixels(scenes: Path, tmp_path: Path) -> None:
    cluster(scenes, tmp_path, "segments=best")
    facts = json.loads((tmp_path / "result.json").read_text())
    true = np.stack([read_class_map(path) for path in sorted((scenes / "val/truth/maps").glob("*.png"))])
    counts = confusion_matrix(true, true, 4, 4).sum(1)
    assert sum(entry["pixels"] for entry in facts["by_cluster"]) == counts.sum()
