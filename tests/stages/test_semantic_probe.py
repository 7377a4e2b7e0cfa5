import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional

from figureground.data.semantic_truth import read_class_map
from figureground.errors import UsageError
from figureground.stages.semantic_probe import FILE, SemanticProbeResult, at_pixels, configure, largest, run
from tests.reference import semantic as slow
from tests.stages.kinds import SIZE, write_kinds

FAST = ["size=96", "shard_size=4", "resamples=50", "pixels=40", "views=2", "probe.epochs=12"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_kinds(folder / "train", 9)
    write_kinds(folder / "val", 6, 100)
    return folder


def probe(scenes: Path, out: Path, *assignments: str, **more: Any) -> SemanticProbeResult:
    options = {
        "backbone": {"name": "handcrafted"},
        "train": str(scenes / "train/truth"),
        "val": str(scenes / "val/truth"),
        **more,
    }
    return run(configure([*FAST, *assignments], **options), out)


def test_a_linear_layer_tells_kinds(scenes: Path, tmp_path: Path) -> None:
    result = probe(scenes, tmp_path)
    assert (result.images, result.trained, result.held_out, result.failed) == (6, 8, 1, 0)
    assert result.miou.value is not None
    assert result.miou.value > 75
    maps = np.stack([read_class_map(path).astype(int) for path in sorted((tmp_path / "maps").glob("*.png"))])
    true = np.stack([read_class_map(path) for path in sorted((scenes / "val/truth/maps").glob("*.png"))])
    expected = [slow.iou_of(maps, true, number, 255) for number in range(4)]
    assert list(result.per_class.values()) == pytest.approx([100 * (value or 0) for value in expected], abs=1e-3)
    assert result.accuracy == pytest.approx(100 * (maps == true)[true != 255].mean(), abs=1e-3)
    curve = json.loads((tmp_path / "result.json").read_text())["curve"]
    assert len(curve) == 12
    # The first of the best epochs on what was held out, whatever val says.
    assert result.epoch == 1 + int(np.argmax([score for _, score in curve]))
    weights = safetensors.torch.load_file(tmp_path / FILE)
    assert weights["weight"].shape[0] == weights["bias"].shape[0] == 4


def test_goes_on_where_it_stopped(scenes: Path, tmp_path: Path) -> None:
    first = probe(scenes, tmp_path)
    layer = (tmp_path / FILE).read_bytes()
    # What the layer said of some images is lost, and so is the layer.
    (tmp_path / "val/shards/00001.done.json").unlink()
    again = probe(scenes, tmp_path)
    assert (again.resumed, again.miou, again.per_class) == (13, first.miou, first.per_class)
    (tmp_path / FILE).unlink()
    anew = probe(scenes, tmp_path)
    assert (anew.resumed, anew.miou) == (9, first.miou)
    assert (tmp_path / FILE).read_bytes() == layer


def test_classes_are_drawn_to_the_edges(scenes: Path, tmp_path: Path) -> None:
    plain = probe(scenes, tmp_path / "plain", "probe.epochs=3")
    drawn = probe(scenes, tmp_path / "drawn", "probe.epochs=3", "crf=true")
    assert drawn.miou.value != plain.miou.value


def test_bad_input(scenes: Path, tmp_path: Path) -> None:
    write_kinds(tmp_path, 1)
    with pytest.raises(UsageError, match="has one image"):
        probe(scenes, tmp_path / "out", train=str(tmp_path / "truth"))
    with pytest.raises(UsageError, match="--train is missing"):
        probe(scenes, tmp_path / "out", train=None)
    (tmp_path / "truth/classes.json").write_text(json.dumps({"classes": ["background", "brick"]}))
    with pytest.raises(UsageError, match="differ in their classes"):
        probe(scenes, tmp_path / "out", train=str(tmp_path / "truth"))
    assert not (tmp_path / "out").exists()


def test_pixels_are_those_of_the_enlarged_map() -> None:
    features = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    whole = functional.interpolate(features[None], size=SIZE, mode="bilinear")[0]
    places = np.array([0, 95, 96, 3000, SIZE[0] * SIZE[1] - 1])
    torch.testing.assert_close(at_pixels(features, places, SIZE), whole.flatten(1)[:, places].T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(largest(features, SIZE), whole.argmax(0))
