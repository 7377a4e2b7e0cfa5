"""`truth` from a published data set to a file that `evaluate` reads."""

import json
from pathlib import Path

import pytest

from figureground.cli import main
from figureground.data.datasets.catalogue import DATA_SETS, find
from figureground.data.listing import list_images
from figureground.data.truth import read_predictions, read_truth
from figureground.errors import RunError, UsageError
from figureground.stages.result import Progress
from figureground.stages.truth import configure, run
from tests.data.datasets.originals import WRITERS, put, put_image


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_set_becomes_truth(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    WRITERS[name](root)
    result = run(configure(name, root), tmp_path / "new" / "truth.json")
    images = 4 if name in ("voc07", "clipart", "watercolor", "comic") else 2
    assert (result.images, result.objects, result.crowd, result.failures) == (images, images, 0, ())
    assert result.failures_path is None
    assert f"published with {find(name).published_images} images; here there are {images}" in result.notes[-1]
    truth = read_truth(result.path)
    assert len(truth.images) == images
    for annotation in truth.all():
        assert annotation.bbox == (20, 10, 30, 20)
        assert annotation.area == 600
        # Objects365 has no masks; the small copy of it does.
        assert (annotation.mask is not None) == (find(name).masks or name == "objects365_val")
    # What `label` calls the images when it is given the folders of the row.
    listed = list_images([str(root / folder) for folder in find(name).images])
    assert set(listed.names) == {image.file_name for image in truth.images}
    numbered = [
        {"id": 100 + index, "file_name": file_name, "height": 40, "width": 60}
        for index, file_name in enumerate(listed.names)
    ]
    put(tmp_path / "run.json", json.dumps({"images": numbered, "annotations": []}))
    assert len(read_predictions(tmp_path / "run.json", truth).images) == images


def test_what_is_written(tmp_path: Path) -> None:
    WRITERS["coco_val2017"](tmp_path / "root")
    seen: list[Progress] = []
    result = run(configure("coco_val2017", tmp_path / "root"), tmp_path / "truth.json", seen.append)
    content = json.loads(result.path.read_text())
    assert content["info"]["data_set"] == "coco_val2017"
    assert content["info"]["image_root"] == "val2017"
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert content["images"] == [
        {"id": 7, "file_name": "000000000009.jpg", "height": 40, "width": 60},
        {"id": 8, "file_name": "000000000025.jpg", "height": 40, "width": 60},
    ]
    rle = content["annotations"][0]["segmentation"]
    fields = {"category_id": 1, "bbox": [20, 10, 30, 20], "area": 600, "iscrowd": 0, "segmentation": rle}
    assert content["annotations"] == [
        {"id": index, "image_id": 6 + index, **fields, "name": "dog", "orig_category_id": 18} for index in (1, 2)
    ]
    assert [(step.done, step.total, step.instances) for step in seen] == [(0, 2, 0), (1, 2, 1), (2, 2, 2)]
    before = result.path.read_bytes()
    run(configure("coco_val2017", tmp_path / "root"), tmp_path / "truth.json")
    assert result.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "truth.json"]


def test_what_is_broken_is_left_out_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    WRITERS["kitti"](root)
    with (root / "training/label_2/000000.txt").open("a") as file:
        file.write("Car 0.00\nDontCare -1 -1 -10 40 0 60 9 -1 -1 -1 -1000 -1000 -1000 -10\n")
    put(root / "training/label_2/000007.txt", "")
    out = tmp_path / "kitti.json"
    assert call("truth", "kitti", str(root), "--out", str(out)) == 3
    said = capsys.readouterr().out
    assert "2 objects (0 difficult) and 1 crowd regions in 2 images" in said
    assert f"Left out: {root / 'training/label_2/000000.txt'}, line 2: 2 of 15 columns" in said
    assert "2 images or annotations were left out" in said
    failures = [json.loads(line) for line in (tmp_path / "kitti.json.failures.jsonl").read_text().splitlines()]
    assert [failure["path"] for failure in failures] == ["000000.png", "000007.png"]
    assert len(read_truth(out).all()) == 3
    # Mended, there is nothing more to name.
    put_image(root / "training/image_2/000007.png")
    WRITERS["kitti"](root)
    assert call("truth", "kitti", str(root), "--out", str(out)) == 0
    assert not (tmp_path / "kitti.json.failures.jsonl").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "my root"
    WRITERS["voc07"](root)
    out = tmp_path / "truth.json"
    assert call("truth", "voc07", str(root), "--out", str(out), "--limit", "3") == 0
    said = capsys.readouterr().out
    assert "3 objects (0 difficult) and 0 crowd regions in 3 images" in said
    assert "published" not in said
    assert f"figureground label '{root}/JPEGImages' --out runs/voc07" in said
    assert f"figureground evaluate runs/voc07 --truth {out}" in said
    assert "Terms: " in said
    assert call("truth", "voc07", str(root), "--out", str(out), "--limit", "0") == 2
    assert call("truth", "voc07", str(root)) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert call("truth", "voc07") == 2
    assert "Get PASCAL VOC 2007 trainval and test from http" in capsys.readouterr().err
    assert call("truth", "voc99", str(root), "--out", str(out)) == 2
    assert call("truth", "coco_val2017", str(root), "--out", str(tmp_path / "x" / "y.json")) == 2
    assert "2 of 2 paths are missing" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call("truth", "list") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in DATA_SETS)


def test_a_stop_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    WRITERS["ecssd"](tmp_path / "root")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("figureground.data.datasets.saliency_masks.foreground", interrupt)
    assert call("truth", "ecssd", str(tmp_path / "root"), "--out", str(tmp_path / "truth.json")) == 130
    assert "Nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_refusals(tmp_path: Path) -> None:
    root = tmp_path / "root"
    WRITERS["coco_val2017"](root)
    original = root / "annotations" / "instances_val2017.json"
    before = original.read_bytes()
    with pytest.raises(UsageError, match="is the original file of COCO val2017"):
        run(configure("coco_val2017", root), root / "annotations" / ".." / "annotations" / original.name)
    assert original.read_bytes() == before
    with pytest.raises(RunError):
        run(configure("coco_val2017", root), root)
    for path in (root / "val2017").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="None of the 2 images could be used"):
        run(configure("coco_val2017", root), tmp_path / "truth.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]
