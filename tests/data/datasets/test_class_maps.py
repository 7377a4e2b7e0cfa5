import json
from pathlib import Path

import numpy as np
import pytest

from figureground.data.datasets.catalogue import find
from figureground.data.semantic_truth import open_semantic_truth
from figureground.errors import UsageError
from figureground.stages.truth import configure, run
from tests.data.datasets.originals import (
    SIZE,
    SQUARE,
    WRITERS,
    put,
    put_image,
    put_map,
    put_mask,
    put_stuff_categories,
    read,
)


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "root"
    WRITERS["voc12_classes_val"](root)
    numbers = np.random.default_rng(0).integers(0, 21, SIZE).astype(np.uint8)
    numbers[0] = 255
    put_map(root / "SegmentationClass/2007_000033.png", numbers)
    result = run(configure("voc12_classes_val", root), tmp_path / "truth.json")
    assert result.failures == ()
    truth = open_semantic_truth(result.path, root / "JPEGImages")
    assert truth.classes == find("voc12_classes_val").classes
    assert (len(truth.classes), truth.classes[15], truth.background) == (21, "person", 0)
    np.testing.assert_array_equal(truth.class_map("2007_000033.jpg", SIZE), numbers)
    np.testing.assert_array_equal(truth.class_map("2007_000042.jpg", SIZE), SQUARE * 12)
    content = json.loads(result.path.read_text())
    dog = next(entry for entry in content["annotations"] if entry["image_id"] == 2)
    assert (dog["name"], dog["orig_category_id"], dog["stuff"], dog["iscrowd"]) == ("dog", 12, 1, 0)


def test_trainaug_is_train_and_all_of_sbd_without_val(tmp_path: Path) -> None:
    WRITERS["voc12_classes_trainaug"](tmp_path)
    good, bad, _ = read("voc12_classes_trainaug", tmp_path)
    assert (list(good), bad) == (["2007_000033.jpg", "2007_000042.jpg"], {})
    # One that both have is VOC's own.
    put_map(tmp_path / "SegmentationClass/2007_000033.png", SQUARE * 3)
    (tmp_path / "benchmark_RELEASE/dataset/cls/2007_000042.mat").write_bytes(b"MATLAB")
    good, bad, _ = read("voc12_classes_trainaug", tmp_path)
    assert good["2007_000033.jpg"].objects[0].name == "bird"
    assert "is not a truth of SBD" in bad["2007_000042.jpg"]
    (tmp_path / "benchmark_RELEASE/dataset/cls/2007_000042.mat").unlink()
    assert "does not exist" in read("voc12_classes_trainaug", tmp_path)[1]["2007_000042.jpg"]


def test_voc_that_is_wrong(tmp_path: Path) -> None:
    WRITERS["voc12_classes_val"](tmp_path)
    put_map(tmp_path / "SegmentationClass/2007_000033.png", SQUARE * 21)
    put_map(tmp_path / "SegmentationClass/2007_000042.png", SQUARE.T)
    _, bad, _ = read("voc12_classes_val", tmp_path)
    assert "holds 21, but there are the classes 0 to 20" in bad["2007_000033.jpg"]
    assert "is for an image of 40x60 px" in bad["2007_000042.jpg"]
    put_mask(tmp_path / "SegmentationClass/2007_000033.png", SQUARE * 12, "RGB")
    (tmp_path / "SegmentationClass/2007_000042.png").unlink()
    _, bad, _ = read("voc12_classes_val", tmp_path)
    assert "neither grey nor has a palette" in bad["2007_000033.jpg"]
    assert "No such file" in bad["2007_000042.jpg"]


def test_coarse_classes_are_the_supercategories(tmp_path: Path) -> None:
    WRITERS["cocostuff27_val"](tmp_path)
    names = find("cocostuff27_val").classes
    assert (len(names), names[0], names[12]) == (27, "person", "textile")
    # A pixel is a category's id less one: 1 is of a person, 101 and 102 of stuff.
    numbers = np.full(SIZE, 255)
    numbers[:10], numbers[10:20], numbers[20:30] = 0, 100, 101
    put_mask(tmp_path / "stuffthingmaps/val2017/000000000009.png", numbers)
    result = run(configure("cocostuff27_val", tmp_path), tmp_path / "truth.json")
    truth = open_semantic_truth(result.path, tmp_path / "val2017")
    found = truth.class_map("000000000009.jpg", SIZE)
    assert truth.background is None
    assert [truth.classes[number] for number in found[[0, 10, 20], 0]] == ["person", "building", "raw-material"]
    assert (found[30:] == 255).all()
    # A list chooses.
    put(tmp_path / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt", "000000000025\n")
    assert list(read("cocostuff27_val_curated", tmp_path)[0]) == ["000000000025.jpg"]


def test_coco_stuff_that_is_wrong(tmp_path: Path) -> None:
    WRITERS["cocostuff27_val"](tmp_path)
    put_mask(tmp_path / "stuffthingmaps/val2017/000000000009.png", np.where(SQUARE, 50, 255))
    assert "holds 50, which is no category" in read("cocostuff27_val", tmp_path)[1]["000000000009.jpg"]
    path = tmp_path / "annotations/stuff_val2017.json"
    content = json.loads(path.read_text())
    for categories, said in (
        (content["categories"][1:], "No category of COCO's files is textile"),
        ([*content["categories"], {"id": 150, "name": "x", "supercategory": "moon"}], "'moon' is none of the 27"),
        ([], "`categories` is missing"),
    ):
        path.write_text(json.dumps({**content, "categories": categories}))
        with pytest.raises(UsageError, match=said):
            read("cocostuff27_val", tmp_path)
    put_stuff_categories(tmp_path)
    put_image(tmp_path / "val2017/000000000009.jpg", (50, 60))
    put_mask(tmp_path / "stuffthingmaps/val2017/000000000009.png", np.where(SQUARE, 3, 255))
    assert "is for an image of 60x40 px" in read("cocostuff27_val", tmp_path)[1]["000000000009.jpg"]
