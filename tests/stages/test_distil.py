"""`distil` from masks to a backbone and its head, and `label` with both."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from figureground.backbones import load, own
from figureground.cli import main
from figureground.errors import ConfigError, UsageError, WeightsError
from figureground.ops.rle import decode, encode
from figureground.stages import label as label_stage
from figureground.stages.distil import DistilRunConfig, configure, run
from figureground.stages.labeller import label
from figureground.training.loop import StepReport
from tests.training.drawn import draw

SMALL = ["distil.width=48", "distil.depth=2", "distil.heads=3", "distil.image_size=64", "crops.side=64"]
SMALL += ["store_side=72", "batch_size=8", "distil.warmup_steps=5", "distil.average=0.9", "distil.rate=3e-3"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("drawn")
    truths = draw(folder / "images", 40)
    write_labels(folder / "labels.json", {name: truths[name] for name in list(truths)[:32]})
    return folder, truths


def write_labels(path: Path, truths: dict[str, np.ndarray], **fields: Any) -> None:
    """A COCO file of masks that are wrong in every picture, each in a way of its own."""
    images, annotations = [], []
    for index, (name, truth) in enumerate(truths.items()):
        rng = np.random.default_rng(index)
        shifted = np.roll(truth, rng.integers(-6, 7, 2), (0, 1))
        y, x = (int(rng.integers(0, side - 24)) for side in truth.shape)
        shifted[y : y + 24, x : x + 24] ^= True
        [mask] = encode(torch.from_numpy(shifted[None]))
        images.append({"id": index + 1, "file_name": name, "height": 96, "width": 128})
        entry = {"id": index + 1, "image_id": index + 1, "category_id": 1, "segmentation": mask, "score": 0.9}
        annotations.append({**entry, **fields})
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def small(drawn: tuple[Path, Any], *assignments: str) -> DistilRunConfig:
    folder = drawn[0]
    return configure(str(folder / "labels.json"), [*SMALL, *assignments], images=str(folder / "images"))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def test_the_pupil_is_better_than_its_masks(drawn: tuple[Path, Any], tmp_path: Path) -> None:
    folder, truths = drawn
    seen: list[StepReport] = []
    result = run(small(drawn, "steps=150"), tmp_path / "run", seen.append)
    assert (result.steps, result.resumed, result.skipped, result.images, result.failed) == (150, 0, 0, 32, 0)
    assert len(seen) == 150
    assert result.foreground is not None
    assert 0.02 < result.foreground < 0.6
    learned = []
    for name in list(truths)[32:]:
        found = label(
            folder / "images" / name,
            method="found",
            backbone={"name": str(result.out), "features": "tokens"},
            found={"head": str(result.head)},
            size=112,
            refine={"method": "none"},
        )
        mask = found.masks.any(0).numpy() if len(found) else np.zeros((96, 128), bool)
        learned.append(iou(mask, truths[name]))
    taught = []
    for entry in json.loads((folder / "labels.json").read_text())["annotations"]:
        name = list(truths)[entry["image_id"] - 1]
        taught.append(iou(decode([entry["segmentation"]])[0].numpy(), truths[name]))
    # Pictures that it has not seen, at the resolution of its patches.
    assert np.mean(learned) > np.mean(taught)

    written = {path.name for path in result.out.iterdir() if not path.name.startswith(".")}
    assert written == {
        *("config.json", "environment.json", "images.json", "result.json", "log.jsonl", "failures.jsonl"),
        *("checkpoints", "head.safetensors", "backbone.safetensors"),
    }


def test_interrupted_and_resumed_equals_undisturbed(drawn: tuple[Path, Any], tmp_path: Path) -> None:
    config = small(drawn, "steps=6", "checkpoint_every=2")
    calm = run(config, tmp_path / "calm")

    def stop(report: StepReport) -> None:
        if report.position.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "stopped", stop)
    again = run(config, tmp_path / "stopped")
    assert again.resumed == 4
    assert again.backbone.read_bytes() == calm.backbone.read_bytes()
    assert again.head.read_bytes() == calm.head.read_bytes()
    with pytest.raises(ConfigError, match="seed"):
        run(small(drawn, "steps=6", "seed=1"), tmp_path / "stopped")


def test_goes_on_with_the_same_masks_only(drawn: tuple[Path, Any], tmp_path: Path) -> None:
    folder, truths = drawn
    write_labels(tmp_path / "labels.json", {name: truths[name] for name in list(truths)[:8]})
    config = configure(str(tmp_path / "labels.json"), [*SMALL, "steps=1"], images=str(folder / "images"))
    run(config, tmp_path / "run")
    write_labels(tmp_path / "labels.json", {name: ~truths[name] for name in list(truths)[:8]})
    with pytest.raises(ConfigError, match="digest"):
        run(config, tmp_path / "run")


def test_goes_on_from_earlier_weights(drawn: tuple[Path, Any], tmp_path: Path) -> None:
    first = run(small(drawn, "steps=2"), tmp_path / "first")
    second = run(small(drawn, "steps=1", f"init={tmp_path / 'first'}", "distil.rate=1e-9"), tmp_path / "second")
    before, after = (load_file(result.backbone) for result in (first, second))
    # All that was learned, but for the statistics of the stem, which are those of the last batches.
    for name, value in before.items():
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-3)
    fresh = run(small(drawn, "steps=1", "seed=5", "distil.rate=1e-9"), tmp_path / "fresh")
    assert not torch.allclose(load_file(fresh.backbone)["cls_token"], before["cls_token"], atol=1e-3)
    with pytest.raises(ConfigError, match="depth=3"):
        run(small(drawn, "steps=1", f"init={tmp_path / 'first'}", "distil.depth=3"), tmp_path / "third")


class TestInput:
    def test_no_masks(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="No masks are given"):
            run(configure(None, SMALL), tmp_path / "run")
        with pytest.raises(UsageError, match=r"has no annotations\.json"):
            run(configure(str(tmp_path), SMALL), tmp_path / "run")
        with pytest.raises(UsageError, match="where its images are"):
            run(configure(str(drawn[0] / "labels.json"), SMALL), tmp_path / "run")
        write_labels(tmp_path / "unsure.json", drawn[1], score=0.1)
        with pytest.raises(UsageError, match="none of its 40 images"):
            run(configure(str(tmp_path / "unsure.json"), SMALL, images=str(drawn[0] / "images")), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_sizes_that_do_not_fit(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"crops\.side=64"):
            small(drawn, "crops.side=70")
        with pytest.raises(ConfigError, match="divide among"):
            run(small(drawn, "distil.heads=5"), tmp_path / "run")
        with pytest.raises(ConfigError, match="halves the side"):
            run(small(drawn, "distil.patch_size=12", "distil.image_size=96", "crops.side=96"), tmp_path / "run")

    def test_an_unreadable_image_is_passed_over(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        images = tmp_path / "images"
        truths = draw(images, 3)
        (images / "01.png").write_bytes(b"no picture")
        write_labels(tmp_path / "labels.json", truths)
        result = run(
            configure(str(tmp_path / "labels.json"), [*SMALL, "steps=1"], images=str(images)), tmp_path / "run"
        )
        assert result.failed == 1

    def test_a_run_of_label_says_where_its_images_are(
        self, drawn: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        images = tmp_path / "images"
        draw(images, 3)
        settings = ["size=96", "background.regions=[]", "refine.method=none"]
        label_stage.run(label_stage.configure([str(images)], assignments=settings), tmp_path / "masks")
        arguments = ["distil", str(tmp_path / "masks"), "--out", str(tmp_path / "run"), "--set", "steps=1"]
        for assignment in SMALL:
            arguments += ["--set", assignment]
        with pytest.raises(SystemExit) as ending:
            main(arguments)
        assert ending.value.code in (0, None)
        assert "backbone.safetensors" in capsys.readouterr().out


class TestOwnBackbone:
    @pytest.mark.parametrize("stem", ["patch", "conv"])
    def test_the_adapter_computes_what_timm_does(self, stem: own.Stem, tmp_path: Path) -> None:
        shape = own.Shape(patch_size=8, image_size=48, width=48, depth=2, heads=3, stem=stem)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Any = shape.build().eval()
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        path = tmp_path / "backbone.safetensors"
        save_file(weights, path, own.describe(shape, {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}))
        images = torch.rand(2, 3, 64, 40, generator=torch.Generator().manual_seed(1))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
        with torch.no_grad():
            expected = model.forward_features((images - mean) / std)[:, 1:]
        # By file and by the folder it is in.
        for name in (path, tmp_path):
            backbone: Any = load(str(name), features="tokens")
            torch.testing.assert_close(backbone(images).values.flatten(1, 2), expected, rtol=1e-4, atol=1e-5)
            assert backbone.name.startswith("own-")

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="No backbone at"):
            load(str(tmp_path / "none.safetensors"))
        with pytest.raises(UsageError, match="Unknown backbone"):
            load(str(tmp_path))
        (tmp_path / "bytes.safetensors").write_bytes(b"no tensors")
        with pytest.raises(WeightsError, match="cannot be read as a backbone"):
            load(str(tmp_path / "bytes.safetensors"))
        weights = {"a": torch.zeros(1)}
        save_file(weights, tmp_path / "bare.safetensors")
        with pytest.raises(WeightsError, match="does not say how"):
            load(str(tmp_path / "bare.safetensors"))
        shape = own.Shape(patch_size=8, image_size=48, width=48, depth=2, heads=3)
        save_file(weights, tmp_path / "other.safetensors", own.describe(shape, {"mean": [0, 0, 0], "std": [1, 1, 1]}))
        with pytest.raises(WeightsError, match="does not fit"):
            load(str(tmp_path / "other.safetensors"))

    def test_its_head_is_used_unless_another_method_is_asked_for(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        result = run(small(drawn, "steps=1"), tmp_path / "run")
        backbone = {"name": str(result.out)}
        chosen = label_stage.configure([str(drawn[0])], backbone=backbone)
        assert (chosen.method, chosen.backbone.features, chosen.size) == ("found", "tokens", 64)
        assert chosen.found is not None
        assert chosen.found.head == str(result.head)
        other = label_stage.configure([str(drawn[0])], method="tokencut", backbone=backbone)
        assert (other.method, other.backbone.features, other.size) == ("tokencut", "keys", 480)
        result.head.unlink()
        bare = label_stage.configure([str(drawn[0])], backbone=backbone)
        assert (bare.method, bare.backbone.features) == ("maskcut", "keys")

    def test_a_picture_of_any_size(self, drawn: tuple[Path, Any], tmp_path: Path) -> None:
        result = run(small(drawn, "steps=1"), tmp_path / "run")
        Image.new("RGB", (7, 200), (9, 99, 200)).save(tmp_path / "thin.png")
        found = label(tmp_path / "thin.png", method="maskcut", backbone={"name": str(result.out)}, size=64)
        assert found.masks.shape[1:] == (200, 7)
