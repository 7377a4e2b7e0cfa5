import json
from pathlib import Path

import numpy as np
import pytest

from figureground.data.semantic_truth import IGNORE, open_semantic_truth
from figureground.errors import ImageError, UsageError
from tests.data.datasets.originals import SQUARE, coco_image, put_coco, put_image, put_map, put_mask, runs

SIZE = (40, 60)


def put_truth(folder: Path, numbers: np.ndarray, classes: object = ("background", "dog")) -> Path:
    put_image(folder / "images/sub/a.jpg")
    put_image(folder / "images/without.jpg")
    put_map(folder / "maps/sub/a.png", numbers)
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    return folder


def test_a_folder(tmp_path: Path) -> None:
    numbers = SQUARE.astype(np.uint8)
    numbers[0] = 255
    truth = open_semantic_truth(put_truth(tmp_path, numbers))
    assert (truth.classes, truth.background, truth.images.names) == (("background", "dog"), 0, ("sub/a.jpg",))
    np.testing.assert_array_equal(truth.class_map("sub/a.jpg", SIZE), numbers)
    with pytest.raises(ImageError, match="40x60 px, but the image 60x40"):
        truth.class_map("sub/a.jpg", (60, 40))
    # Numbers need not be places: names say which there are, and the order is theirs.
    put_map(tmp_path / "maps/sub/a.png", np.where(SQUARE, 7, 3))
    (tmp_path / "classes.json").write_text(json.dumps({"classes": {"7": "dog", "3": "sky"}}))
    other = open_semantic_truth(tmp_path)
    assert (other.classes, other.background) == (("sky", "dog"), None)
    np.testing.assert_array_equal(other.class_map("sub/a.jpg", SIZE), SQUARE)
    assert other.digest != truth.digest
    # Folders elsewhere.
    (tmp_path / "images").rename(tmp_path / "photos")
    assert open_semantic_truth(tmp_path, tmp_path / "photos").images.root == tmp_path / "photos"
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["x", "y"], "images": "photos"}))
    assert open_semantic_truth(tmp_path).images.names == ("sub/a.jpg",)


def test_a_class_that_is_missing(tmp_path: Path) -> None:
    truth = open_semantic_truth(put_truth(tmp_path, SQUARE * 2))
    with pytest.raises(UsageError, match=r"a\.png holds the class numbers 2, which .*classes\.json does not name"):
        truth.class_map("sub/a.jpg", SIZE)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (None, "no list of names"),
        ([], "no list of names"),
        ({"x": "dog"}, "'x' is not the number"),
        ({"255": "dog"}, "'255' is not the number"),
        (["background", 3], "the name of class 1 is not a text: 3"),
        (["dog", "dog"], "two classes one name"),
    ],
)
def test_wrong_classes(classes: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        open_semantic_truth(put_truth(tmp_path, SQUARE, classes))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no truth at"):
        open_semantic_truth(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"it has no classes\.json"):
        open_semantic_truth(tmp_path)
    put_truth(tmp_path, SQUARE)
    put_map(tmp_path / "maps/sub/b.png", SQUARE)
    with pytest.raises(UsageError, match=r"sub/b\.png is the class map of no image"):
        open_semantic_truth(tmp_path)
    (tmp_path / "maps/sub/b.png").unlink()
    put_image(tmp_path / "images/sub/a.png")
    with pytest.raises(UsageError, match=r"sub/a\.jpg and sub/a\.png have one name"):
        open_semantic_truth(tmp_path)
    (tmp_path / "images/sub/a.png").unlink()
    (tmp_path / "maps/sub/a.png").unlink()
    with pytest.raises(UsageError, match="holds no class map"):
        open_semantic_truth(tmp_path)


def test_damaged_maps(tmp_path: Path) -> None:
    truth = open_semantic_truth(put_truth(tmp_path, SQUARE))
    path = tmp_path / "maps/sub/a.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match="damaged"):
        truth.class_map("sub/a.jpg", SIZE)
    put_mask(path, SQUARE * 1, "RGB")
    with pytest.raises(ImageError, match="neither grey nor has a palette"):
        truth.class_map("sub/a.jpg", SIZE)


def put_objects(path: Path, entries: list[dict], **info: object) -> Path:
    put_image(path.parent / "images/a.jpg")
    common = {"image_id": 1, "category_id": 18}
    objects = [{"id": number, **common, **entry} for number, entry in enumerate(entries, start=1)]
    put_coco(path, [coco_image(1, "a.jpg")], objects)
    if info:
        path.write_text(json.dumps({**json.loads(path.read_text()), "info": info}))
    return path


def test_objects_with_classes_are_painted(tmp_path: Path) -> None:
    small, crowd = np.zeros(SIZE, dtype=bool), np.zeros(SIZE, dtype=bool)
    small[15:20, 25:30], crowd[:12] = True, True
    entries = [
        {"segmentation": runs(small), "orig_category_id": 9},
        {"segmentation": runs(SQUARE), "orig_category_id": 10},
        {"segmentation": runs(crowd), "orig_category_id": 9, "iscrowd": 1},
    ]
    truth = open_semantic_truth(put_objects(tmp_path / "truth.json", entries))
    assert truth.classes == ("background", "9", "10")
    expected = np.where(crowd, IGNORE, 0)
    expected[SQUARE] = 2
    expected[small] = 1
    np.testing.assert_array_equal(truth.class_map("a.jpg", SIZE), expected)
    # Where the file names its classes and none is the background, what nothing covers does not count.
    named = put_objects(
        tmp_path / "named.json", [{"segmentation": runs(SQUARE), "name": "dog"}], classes=["cat", "dog"]
    )
    truth = open_semantic_truth(named)
    assert (truth.classes, truth.background) == (("cat", "dog"), None)
    np.testing.assert_array_equal(truth.class_map("a.jpg", SIZE), np.where(SQUARE, 1, IGNORE))


def test_objects_that_are_no_truth(tmp_path: Path) -> None:
    plain = put_objects(tmp_path / "plain.json", [{"segmentation": runs(SQUARE)}])
    with pytest.raises(UsageError, match="no object with a class"):
        open_semantic_truth(plain)
    box = put_objects(tmp_path / "box.json", [{"bbox": [1, 1, 5, 5], "name": "dog"}])
    with pytest.raises(UsageError, match="has no mask: boxes do not say"):
        open_semantic_truth(box)
    entries = [{"segmentation": runs(SQUARE), "name": "dog"}]
    short = put_objects(tmp_path / "short.json", entries, classes=["background", "cat"])
    with pytest.raises(UsageError, match="does not name 'dog'"):
        open_semantic_truth(short)
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(UsageError, match="None of the 1 images"):
        open_semantic_truth(put_objects(tmp_path / "x/short.json", entries), tmp_path / "images")
