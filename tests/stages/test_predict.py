"""`predict`: a detector, a folder of photographs, and a run like that of `label`."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import figureground
from figureground import detectors
from figureground.errors import ConfigError, RunError, UsageError, WeightsError
from figureground.stages import Progress
from figureground.stages import evaluate as evaluate_stage
from figureground.stages.detecting import Finder, load_detector
from figureground.stages.predict import PredictConfig, configure, run
from figureground.storage import jsonlines
from tests.data.odd_images import BROKEN, USABLE, write_all
from tests.stages.labelled import write_labelled

QUICK = ["shard_size=3", "batch_size=2", "max_detections=4"]


def untrained(**changes: Any) -> detectors.DetectorConfig:
    """A detector that finds something anywhere, but always the same."""
    backbone = dict(patch_size=16, width=24, depth=1, heads=2, channels=8)
    return detectors.configure("vitdet", "tiny", backbone=backbone, **changes)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    detectors.save(path, detectors.create(untrained(short_side=64)))
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled") / "drawn", 7)


@pytest.fixture(scope="module")
def undisturbed(detector: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(quick(detector, labelled), out)
    return out


def quick(detector: Path, labelled: Path, *assignments: str, **options: Any) -> PredictConfig:
    photos = [str(labelled.parent / "photos")]
    return configure(detector, photos, [*QUICK, *assignments], **{"score_threshold": 0.0, **options})


def contents(out: Path) -> dict[str, bytes]:
    """What must be the same bytes however often a run was stopped: all but clocks."""
    kept = [out / "annotations.json", out / "failures.jsonl", *sorted((out / "shards").glob("*.json.gz"))]
    return {path.name: path.read_bytes() for path in kept}


def test_run_directory(detector: Path, labelled: Path, undisturbed: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = run(quick(detector, labelled), tmp_path / "run", progress=seen.append)
    assert (result.images, result.failed, result.resumed) == (7, 0, 0)
    assert [entry.done for entry in seen] == list(range(8))
    assert seen[-1].instances == result.instances > 0
    assert contents(tmp_path / "run") == contents(undisturbed)
    written = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")}
    assert written == {
        *("config.json", "environment.json", "result.json", "log.jsonl", "failures.jsonl", "shards"),
        *("annotations.json", "report.html"),
    }
    facts = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (facts["stage"], facts["images"]) == ("predict", 7)
    assert facts["stage_seconds"].keys() == {"decode", "detect"}
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert PredictConfig.model_validate(content).model_dump(mode="json") == content


def test_annotations(undisturbed: Path, detector: Path, labelled: Path) -> None:
    coco = COCO(str(undisturbed / "annotations.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [f"{i:03d}.png" for i in range(7)]
    for image in coco.loadImgs(coco.getImgIds()):
        found = coco.loadAnns(coco.getAnnIds([image["id"]]))
        assert 0 < len(found) <= 4
        scores = [annotation["score"] for annotation in found]
        assert scores == sorted(scores, reverse=True)
        for annotation in found:
            mask = coco.annToMask(annotation)
            assert mask.shape == (64, 80)
            assert mask.sum() == annotation["area"] > 0
            x, y, width, height = annotation["bbox"]
            assert 0 <= x <= x + width <= 80
            assert 0 <= y <= y + height <= 64
    # Boxes are the detector's own.
    pixels = torch.from_numpy(figureground.load_image(labelled.parent / "photos" / "006.png").copy())
    [alone] = load_detector(detector).detect([pixels.permute(2, 0, 1) / 255], max_detections=4)
    expected = alone.boxes[alone.masks.flatten(1).any(1)]
    boxes = np.array([annotation["bbox"] for annotation in coco.loadAnns(coco.getAnnIds([7]))])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, expected, atol=0.011)


def test_it_can_be_evaluated(undisturbed: Path, labelled: Path) -> None:
    config = evaluate_stage.configure(undisturbed, labelled / "annotations.json", ["resamples=0"])
    result = evaluate_stage.run(config)
    assert result.counts["images"] == 7
    assert result.measures.keys() == {"box", "mask", "corloc", "saliency"}
    assert result.notes == ()


class TestResume:
    def test_stopped_and_resumed_equals_undisturbed(
        self, detector: Path, labelled: Path, undisturbed: Path, tmp_path: Path
    ) -> None:
        def stop(progress: Progress) -> None:
            if progress.done == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(quick(detector, labelled), tmp_path / "run", progress=stop)
        result = run(quick(detector, labelled, "threads=2"), tmp_path / "run")
        assert (result.resumed, result.images) == (3, 7)
        assert contents(tmp_path / "run") == contents(undisturbed)

    def test_other_weights_and_settings_are_refused(self, detector: Path, labelled: Path, tmp_path: Path) -> None:
        run(quick(detector, labelled, limit=1), tmp_path / "run")
        # It is the content that counts, not the place.
        (tmp_path / "training").mkdir()
        copy = shutil.copy(detector, tmp_path / "training")
        assert run(quick(tmp_path / "training", labelled, limit=1), tmp_path / "run").resumed == 1
        detectors.save(copy, detectors.create(untrained(short_side=64), torch.Generator().manual_seed(1)))
        with pytest.raises(ConfigError, match="digest: "):
            run(quick(copy, labelled, limit=1), tmp_path / "run")
        with pytest.raises(ConfigError, match=r"nms: null -> 0\.3"):
            run(quick(detector, labelled, "nms=0.3", limit=1), tmp_path / "run")


class TestSettings:
    def test_they_reach_the_detector(self, detector: Path, labelled: Path, tmp_path: Path) -> None:
        def found(name: str, *settings: str, **options: Any) -> list[dict[str, Any]]:
            config = quick(detector, labelled, "max_detections=50", *settings, limit=2, **options)
            run(config, tmp_path / name)
            return json.loads((tmp_path / name / "annotations.json").read_text())["annotations"]

        everything = found("all")
        assert len(found("two", "max_detections=2")) == 4
        scores = sorted(each["score"] for each in everything)
        middle = (scores[20] + scores[21]) / 2
        assert scores[20] < middle
        assert len(found("sure", score_threshold=middle)) == len(scores) - 21
        assert 0 < len(found("apart", "nms=0.05")) < len(everything)
        assert [each["bbox"] for each in found("larger", "short_side=96")] != [each["bbox"] for each in everything]

    def test_bfloat16(self, detector: Path, labelled: Path, tmp_path: Path) -> None:
        run(quick(detector, labelled, "precision=bf16", limit=1), tmp_path / "run")
        [image] = json.loads((tmp_path / "run" / "annotations.json").read_text())["images"]
        assert image["height"] == 64

    @pytest.mark.parametrize(("threshold", "shown"), [(0.0, "0"), (0.3, "0.3"), (1.0, "0")])
    def test_the_report_begins_with_the_sure_ones(self, threshold: float, shown: str, undisturbed: Path) -> None:
        from figureground.viewer import write_report

        page = write_report(undisturbed, load_image=lambda _: np.zeros((64, 80, 3), np.uint8), sure=threshold)
        assert f'name="score" min="0" max="1" step="0.01" value="{shown}"' in page.read_text()


class TestFinder:
    def test_a_large_photograph_is_found_at_its_size(self, detector: Path, labelled: Path) -> None:
        """Four times the pixels on each side: masks and boxes are four times as large, but for the resampling."""
        finder = Finder(load_detector(detector), max_detections=1)
        pixels = figureground.load_image(labelled.parent / "photos" / "000.png")
        large = pixels.repeat(4, axis=0).repeat(4, axis=1)
        [small], [big] = (
            found["annotations"]
            for [found] in (finder.find(["a"], [pixels], [(64, 80)]), finder.find(["a"], [large], [(256, 320)]))
        )
        assert big["segmentation"]["size"] == [256, 320]
        np.testing.assert_allclose(np.array(big["bbox"]) / 4, small["bbox"], atol=0.5)
        assert big["area"] / 16 == pytest.approx(small["area"], rel=0.05)
        # The same where the decoder has made it smaller already.
        [decoded] = finder.find(["a"], [pixels], [(256, 320)])[0]["annotations"]
        np.testing.assert_allclose(np.array(decoded["bbox"]) / 4, small["bbox"], atol=0.01)

    def test_it_leaves_the_mode(self, detector: Path) -> None:
        model = load_detector(detector).train()
        Finder(model).find(["a"], [np.zeros((32, 32, 3), np.uint8)], [(32, 32)])
        assert model.training


class TestOddImages:
    def test_broken_ones_are_named_and_take_nothing_with_them(self, detector: Path, tmp_path: Path) -> None:
        write_all(tmp_path / "photos")
        result = run(configure(detector, [str(tmp_path / "photos")], QUICK), tmp_path / "run")
        assert (result.images, result.failed, result.ignored) == (len(USABLE) + 1, len(BROKEN), 1)
        failures = {entry["path"]: entry["error"] for entry in jsonlines.read(tmp_path / "run" / "failures.jsonl")}
        assert failures.keys() == BROKEN.keys()
        assert all(BROKEN[name][1] in error for name, error in failures.items())
        images = json.loads((tmp_path / "run" / "annotations.json").read_text())["images"]
        assert {image["file_name"] for image in images} == {*USABLE, "nested/plain.jpg"}

    @pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 2)])
    def test_extreme_shapes(self, size: tuple[int, int], detector: Path, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "a.png")
        config = configure(detector, [str(tmp_path / "a.png")], score_threshold=0.0)
        assert run(config, tmp_path / "run").images == 1


class TestDetector:
    def test_where_there_is_none(self, labelled: Path, tmp_path: Path) -> None:
        (tmp_path / "training").mkdir()
        (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
        cases: Sequence[tuple[Path, type[Exception], str]] = (
            (tmp_path / "nothing", UsageError, "There is no detector at"),
            (tmp_path / "training", UsageError, "holds no detector.safetensors"),
            (tmp_path / "damaged.safetensors", WeightsError, "cannot be read as a detector"),
        )
        for path, error, said in cases:
            with pytest.raises(error, match=said):
                run(quick(path, labelled), tmp_path / "run")
            with pytest.raises(error, match=said):
                load_detector(path)
        assert not (tmp_path / "run").exists()

    def test_nothing_to_look_at(self, detector: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="No images were given"):
            run(configure(detector), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        (tmp_path / "file").write_text("")
        Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
        with pytest.raises(RunError):
            run(configure(detector, [str(tmp_path / "a.png")]), tmp_path / "file")
