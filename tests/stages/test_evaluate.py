"""`evaluate` from files to numbers, and the table it prints."""

import json
from pathlib import Path
from typing import Any

import pytest

from figureground.cli import main
from figureground.config import ConfigError
from figureground.errors import UsageError
from figureground.stages.evaluate import EvaluateResult, configure, run
from tests.evaluation.scenes import coco128, jittered, random_scene, write

QUICK = ["resamples=20"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A run's folder and a truth."""
    truth, detections = random_scene(0)
    (tmp_path / "run").mkdir()
    full = {**truth, "annotations": [{**entry, "id": index} for index, entry in enumerate(detections)]}
    (tmp_path / "run" / "annotations.json").write_text(json.dumps(full))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path / "run", tmp_path / "truth.json"


def value(result: EvaluateResult, group: str, name: str) -> float:
    number = result.measures[group][name].value
    assert number is not None
    return number


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_a_run(files: tuple[Path, Path]) -> None:
    folder, truth = files
    result = run(configure(folder, truth, QUICK))
    assert tuple(result.measures) == ("box", "mask", "corloc", "saliency")
    assert 0 < value(result, "mask", "ap") < value(result, "mask", "ar100") < 100
    assert 0 < value(result, "corloc", "corloc") <= 100
    assert result.path == folder / "evaluation.json"
    written = json.loads(result.path.read_text())
    assert written["measures"]["box"]["ap"]["value"] == pytest.approx(value(result, "box", "ap"), abs=1e-6)
    assert written["unit"].startswith("per cent")
    assert written["counts"] == result.counts
    assert configure(folder, truth, QUICK).model_dump(mode="json") == written["config"]
    before = result.path.read_bytes()
    run(configure(folder, truth, QUICK))
    assert result.path.read_bytes() == before


def test_truth_against_itself(files: tuple[Path, Path]) -> None:
    _, truth = files
    content = json.loads(truth.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    truth.write_text(json.dumps(content))
    result = run(configure(truth, truth, ["resamples=0"]))
    assert value(result, "box", "ap") == pytest.approx(100)
    assert value(result, "mask", "ar100") == pytest.approx(100)
    assert value(result, "corloc", "corloc") == 100
    assert result.path is None
    assert result.measures["box"]["ap"].low is None
    assert any("have no score" in note for note in result.notes)


def test_a_file_and_another_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder, truth = files
    result = run(configure(folder / "annotations.json", truth, QUICK), tmp_path / "new" / "out")
    assert result.path == tmp_path / "new" / "out" / "evaluation.json"
    assert result.path.exists()
    assert not (folder / "evaluation.json").exists()


def test_settings(files: tuple[Path, Path]) -> None:
    folder, truth = files
    plain = run(configure(folder, truth, QUICK))
    assert any("count as any other" in note for note in plain.notes)
    lenient = run(configure(folder, truth, [*QUICK, "skip_difficult=true", "saliency_map=union"]))
    assert value(lenient, "box", "ap") != value(plain, "box", "ap")
    assert value(lenient, "saliency", "iou") != value(plain, "saliency", "iou")
    many = run(configure(folder, truth, [*QUICK, "max_detections=[300, 10]"]))
    assert [name for name in many.measures["box"] if name.startswith("ar")][:2] == ["ar10", "ar300"]
    for wrong in ("max_detections=[0]", "max_detections=[]", "saliency_map=sum", "resamples=-1", "trut=x"):
        with pytest.raises(ConfigError):
            configure(folder, truth, [wrong])


def test_images_that_are_not_listed(files: tuple[Path, Path]) -> None:
    folder, truth = files
    content = json.loads((folder / "annotations.json").read_text())
    dropped = {image["id"] for image in content["images"][6:]}
    content["images"] = [*content["images"][:6], {"id": 999, "file_name": "new.jpg", "height": 5, "width": 5}]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] not in dropped]
    (folder / "annotations.json").write_text(json.dumps(content))
    whole = run(configure(folder, truth, QUICK))
    listed = run(configure(folder, truth, [*QUICK, "only_listed=true"]))
    assert (whole.counts["images"], listed.counts["images"]) == (12, 6)
    assert whole.counts["images_not_listed"] == listed.counts["images_not_listed"] == 6
    assert whole.counts["images_without_truth"] == 1
    assert value(whole, "box", "ar100") < value(listed, "box", "ar100")
    assert sum("do not list" in note or "have no truth" in note for note in whole.notes) == 2


def test_boxes_only(tmp_path: Path) -> None:
    truth, detections = random_scene(0)
    for entry in truth["annotations"][1:]:
        del entry["segmentation"]
    write(tmp_path, truth, detections)
    result = run(configure(tmp_path / "predictions.json", tmp_path / "truth.json", QUICK))
    assert tuple(result.measures) == ("box", "corloc")
    assert any("true objects have no mask: only boxes" in note for note in result.notes)
    truth, detections = random_scene(0)
    for entry in detections:
        del entry["segmentation"]
    write(tmp_path, truth, detections)
    result = run(configure(tmp_path / "predictions.json", tmp_path / "truth.json", QUICK))
    assert tuple(result.measures) == ("box", "corloc")
    assert any("predicted objects have no mask" in note for note in result.notes)


def test_nothing_found(tmp_path: Path) -> None:
    truth, _ = random_scene(0)
    write(tmp_path, truth, [])
    result = run(configure(tmp_path / "predictions.json", tmp_path / "truth.json", QUICK))
    assert value(result, "mask", "ap") == value(result, "corloc", "corloc") == value(result, "saliency", "iou") == 0


def test_nothing_is_written_on_an_error(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder, truth = files
    out = tmp_path / "out"

    def refuses(predictions: Path, other: Path, said: str, *settings: str) -> None:
        with pytest.raises(UsageError, match=said):
            run(configure(predictions, other, settings), out)
        assert not out.exists()

    def variant(**fields: Any) -> Path:
        path = tmp_path / "variant.json"
        path.write_text(json.dumps({**json.loads(truth.read_text()), **fields}))
        return path

    refuses(tmp_path, truth, "has no annotations.json")
    refuses(tmp_path / "nothing", truth, "cannot be read")
    refuses(folder, variant(annotations=[]), "variant.json has no object")
    crowd = [{"id": 1, "image_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1}]
    refuses(folder, variant(annotations=crowd), "has no object")
    difficult = [{"id": 1, "image_id": 3, "bbox": [0, 0, 9, 9], "difficult": 1}]
    refuses(folder, variant(annotations=difficult), "has no object", "skip_difficult=true")
    other = [{"id": 3, "file_name": "elsewhere.jpg", "height": 9, "width": 9}]
    refuses(folder, variant(images=other, annotations=[]), "are about other images: none of the 12")


def test_real_photographs(shared: Path, tmp_path: Path) -> None:
    content = coco128(shared)
    truth, _ = write(tmp_path, content, [])
    write(tmp_path, content, jittered(truth, 0))
    result = run(configure(tmp_path / "predictions.json", tmp_path / "truth.json", ["resamples=200"]))
    assert (result.counts["objects"], result.counts["crowd"]) == (929, 10)
    for part in result.measures.values():
        for measure in part.values():
            assert measure.value is not None
            assert measure.low is not None
            assert measure.high is not None
            assert 0 <= measure.low <= measure.value <= measure.high <= 100


# The command.


def test_the_table(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, truth = files
    assert call("evaluate", str(folder), "--truth", str(truth), "--set", "resamples=20") == 0
    out = capsys.readouterr().out
    for text in ("Per cent", "Box AP", "Mask AP75", "AP small", "AR@100", "CorLoc", "max F", "MAE (lower", "12 images"):
        assert text in out
    assert str(folder / "evaluation.json") in out


def test_exit_codes(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, truth = files
    assert call("evaluate", str(folder)) == 2
    assert "--truth is missing" in capsys.readouterr().err
    assert call("evaluate", str(folder), "--truth", str(truth), "--set", "only_liste=true") == 2
    assert "only_listed" in capsys.readouterr().err
    truth.write_text("{")
    assert call("evaluate", str(folder), "--truth", str(truth)) == 2
    assert "truth.json is not JSON" in capsys.readouterr().err
    assert not (folder / "evaluation.json").exists()
