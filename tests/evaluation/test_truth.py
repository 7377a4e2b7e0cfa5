"""Every way in which a truth or a prediction can be wrong is an error that names file and field."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from figureground.data.truth import read_predictions, read_truth
from figureground.errors import UsageError
from figureground.ops.rle import decode, encode
from tests.evaluation.scenes import coco128, describe, random_scene, write

SQUARE = np.zeros((40, 60), dtype=bool)
SQUARE[10:30, 20:50] = True
TRUTH: dict[str, Any] = {
    "images": [
        {"id": 4, "file_name": "sub/a.jpg", "height": 40, "width": 60},
        {"id": 2, "file_name": "b.jpg", "height": 40, "width": 60},
    ],
    "annotations": [
        {"id": 11, "image_id": 4, "category_id": 17, **describe(SQUARE)},
        {"id": 12, "image_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 1, "difficult": True},
    ],
}


def with_field(path: str, value: Any) -> dict[str, Any]:
    """The truth with one field set, or taken away if the value is ``...``."""
    content = copy.deepcopy(TRUTH)
    *parts, last = (int(part) if part.isdigit() else part for part in path.split("."))
    node: Any = content
    for part in parts:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return content


def fails(tmp_path: Path, content: Any, *said: str) -> None:
    path = tmp_path / "truth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError) as caught:
        read_truth(path)
    for text in (str(path), *said):
        assert text in str(caught.value)


def test_what_is_read(tmp_path: Path) -> None:
    truth, _ = write(tmp_path, TRUTH, [])
    assert [image.id for image in truth.images] == [2, 4]
    crowd, square = truth.all()
    assert (crowd.id, crowd.bbox, crowd.area, crowd.crowd, crowd.difficult) == (12, (1, 2, 3, 4), 12, True, True)
    assert (square.id, square.area, square.crowd, square.mask) == (11, 600, False, describe(SQUARE)["segmentation"])
    assert square.rank == 600 / 2400


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("images", ..., ["`images` is missing"]),
        ("images", {}, ["`images` is not a list"]),
        ("images", [], ["`images` is empty"]),
        ("annotations", ..., ["`annotations` is missing"]),
        ("images.0", 3, ["images[0] is not an object"]),
        ("images.0.id", ..., ["images[0]: `id` is missing"]),
        ("images.0.id", "4", ["images[0]: `id` is not a whole number"]),
        ("images.0.id", 2, ["image 2: `id` is given twice"]),
        ("images.0.file_name", ..., ["image 4: `file_name` is missing"]),
        ("images.0.file_name", 7, ["image 4: `file_name` is not a text"]),
        ("images.0.height", 40.5, ["image 4: `height` is not a whole number"]),
        ("images.0.width", 0, ["image 4: `height` and `width` must be positive"]),
        ("annotations.0", [], ["annotations[0] is not an object"]),
        ("annotations.0.id", ..., ["annotations[0]: `id` is missing"]),
        ("annotations.0.id", 12, ["annotation 12: `id` is given twice"]),
        ("annotations.0.image_id", ..., ["annotation 11: `image_id` is missing"]),
        ("annotations.0.image_id", 5, ["annotation 11: `image_id` 5 is not among the 2 images", "1 of 2 annotations"]),
        ("annotations.0.area", -1, ["annotation 11: `area` is negative"]),
        ("annotations.0.area", "big", ["annotation 11: `area` is not a finite number"]),
        ("annotations.0.iscrowd", 2, ["annotation 11: `iscrowd` is neither 0 nor 1"]),
        ("annotations.0.difficult", "yes", ["annotation 11: `difficult`"]),
        ("annotations.1.bbox", ..., ["annotation 12: `bbox` and `segmentation` are both missing"]),
        ("annotations.1.bbox", [1, 2, 3], ["annotation 12: `bbox` is not four numbers"]),
        ("annotations.1.bbox", [1, 2, 3, float("nan")], ["annotation 12: `bbox` is not four numbers"]),
        ("annotations.1.bbox", [1, 2, 3, True], ["annotation 12: `bbox` is not four numbers"]),
        ("annotations.1.bbox", [1, 2, 3, 10**400], ["annotation 12: `bbox` is not four numbers"]),
        ("annotations.1.bbox", [1, 2, -3, 4], ["annotation 12: `bbox` has a negative width"]),
        ("annotations.1.bbox", [1, 2, 61.5, 4], ["annotation 12: `bbox`", "2.5 px out of its image of 60x40"]),
        ("annotations.1.bbox", [1, -2, 3, 4], ["annotation 12: `bbox`", "2 px out"]),
        ("annotations.0.segmentation", "abc", ["annotation 11: `segmentation` is neither"]),
        ("annotations.0.segmentation", {"size": [40, 60]}, ["annotation 11: `segmentation` is neither"]),
        ("annotations.0.segmentation", [[1, 2, 3, 4]], ["annotation 11: `segmentation` is not a list of polygons"]),
        ("annotations.0.segmentation", [[1, 2, 3, 4, 5, 6, 7]], ["`segmentation` is not a list of polygons"]),
        ("annotations.0.segmentation", [[1, 2, 3, None, 5, 6]], ["`segmentation` is not a list of polygons"]),
        ("annotations.0.segmentation", [[1, 2, 3, 4, 5, 46]], ["`segmentation` reaches 6 px out"]),
        ("annotations.0.segmentation.size", [60, 40], ["`segmentation`: `size` [60, 40]", "40 and 60"]),
        ("annotations.0.segmentation.counts", [2000, 401], ["`segmentation`: `counts`"]),
        ("annotations.0.segmentation.counts", [2401, -1], ["`segmentation`: `counts`"]),
        ("annotations.0.segmentation.counts", [], ["`segmentation`: `counts`"]),
        ("annotations.0.segmentation.counts", None, ["`segmentation`: `counts`"]),
        ("annotations.0.segmentation.counts", "", ["`segmentation`: `counts`"]),
        ("annotations.0.segmentation.counts", "~~~~~~~~~~~", ["`segmentation`: `counts`"]),
        ("annotations.0.segmentation.counts", "l" * 20, ["`segmentation`: `counts`"]),
        ("annotations.0.segmentation.counts", "\ud800", ["`segmentation`: `counts`"]),
    ],
)
def test_a_wrong_field_is_named(path: str, value: Any, said: list[str], tmp_path: Path) -> None:
    fails(tmp_path, with_field(path, value), *said)


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_cut_mask_is_found(cut: int, tmp_path: Path) -> None:
    counts = TRUTH["annotations"][0]["segmentation"]["counts"]
    fails(tmp_path, with_field("annotations.0.segmentation.counts", counts[:-cut]), "annotation 11: `segmentation`")
    fails(tmp_path, with_field("annotations.0.segmentation.counts", counts + "0" * cut + "5"), "`segmentation`")


@pytest.mark.parametrize("content", ["", "{", "<html>", "[" * 100_000, "3", "[]", "null"])
def test_no_truth_file_at_all(content: str, tmp_path: Path) -> None:
    fails(tmp_path, content)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.json"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_truth(path)


def test_a_small_overhang_is_cut_off(tmp_path: Path) -> None:
    truth, _ = write(tmp_path, with_field("annotations.1.bbox", [-0.5, 2, 61.25, 38.75]), [])
    assert truth.all()[0].bbox == (0, 2, 60, 38)
    polygon = [[-0.5, 0, 60.5, 0, 60, 40, 0, 40.5]]
    truth, _ = write(tmp_path, with_field("annotations.0.segmentation", polygon), [])
    mask = truth.all()[1].mask
    assert mask is not None
    assert decode([mask]).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_three_ways_to_write_a_mask(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((40, 60)) < rng.uniform(0.01, 0.99)
    flat = np.concatenate(([False], mask.ravel(order="F"), [not mask[-1, -1]]))
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    runs = [int(run) for run in np.diff(np.concatenate(([0], borders)))]
    compressed = encode(torch.from_numpy(mask)[None])[0]
    for segmentation in (compressed, {"size": [40, 60], "counts": runs}):
        content = with_field("annotations.0", {"id": 11, "image_id": 4, "segmentation": segmentation})
        truth, _ = write(tmp_path, content, [])
        square = truth.all()[1]
        assert square.mask == compressed
        assert (square.area, list(square.bbox)) == (mask.sum(), describe(mask)["bbox"])
    box = [[20, 10, 50, 10, 50, 30, 20, 30]]
    truth, _ = write(tmp_path, with_field("annotations.0", {"id": 11, "image_id": 4, "segmentation": box}), [])
    assert truth.all()[1].mask == describe(SQUARE)["segmentation"]


def test_real_truth(shared: Path, tmp_path: Path) -> None:
    truth, _ = write(tmp_path, coco128(shared), [])
    objects = truth.all()
    assert (len(truth.images), len(objects), sum(entry.crowd for entry in objects)) == (128, 939, 10)
    assert all(entry.mask is not None for entry in objects)


# Predictions.


def refuses(tmp_path: Path, predictions: Any, *said: str, truth: Any = TRUTH) -> None:
    with pytest.raises(UsageError) as caught:
        write(tmp_path, truth, predictions)
    for text in (str(tmp_path / "predictions.json"), *said):
        assert text in str(caught.value)


def test_a_list_of_results(tmp_path: Path) -> None:
    results = [{"image_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5, "area": 99}]
    truth, predictions = write(tmp_path, TRUTH, results)
    [found] = predictions.all()
    assert (found.image, found.score, found.area, found.rank) == (truth.images[1], 0.5, 12, 0.5)
    assert predictions.images == truth.images
    results.append({"image_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5})
    refuses(tmp_path, results, "entry 2: `image_id` 5 is not among the 2 images of", "truth.json", "1 of 2")
    refuses(tmp_path, [{"bbox": [1, 2, 3, 4]}], "entry 1: `image_id` is missing")
    refuses(tmp_path, [7], "entry 1 is not an object")
    refuses(tmp_path, [{"image_id": 4, "bbox": [1, 2, 3, 4], "score": None}], "entry 1: `score`")
    refuses(tmp_path, [{"image_id": 4, "bbox": [1, 2, 3, 444]}], "entry 1: `bbox`")
    refuses(tmp_path, 7, "neither a COCO file nor a list")


def test_scores_of_all_or_none(tmp_path: Path) -> None:
    entry = {"image_id": 4, "bbox": [1, 2, 3, 4]}
    _, predictions = write(tmp_path, TRUTH, [entry, entry])
    assert [found.score for found in predictions.all()] == [None, None]
    refuses(tmp_path, [{**entry, "score": 1}, entry], "annotation 2: `score` is missing", "1 of 2")


def test_nothing_found_is_valid(tmp_path: Path) -> None:
    for empty in ([], {"images": TRUTH["images"], "annotations": []}, {"images": [], "annotations": []}):
        _, predictions = write(tmp_path, TRUTH, empty)
        assert predictions.all() == []
    (tmp_path / "predictions.json").write_text("")
    with pytest.raises(UsageError, match="is not JSON"):
        read_predictions(tmp_path / "predictions.json", read_truth(tmp_path / "truth.json"))


def test_matching(tmp_path: Path) -> None:
    def prediction(images: list[dict[str, Any]]) -> dict[str, Any]:
        entries = [
            {"id": index, "image_id": image["id"], "bbox": [index, 0, 1, 1], "score": 1}
            for index, image in enumerate(images)
        ]
        return {"images": images, "annotations": entries}

    def matched(*names_and_ids: tuple[str, int]) -> tuple[dict[int, int], int, int]:
        images = [{"id": number, "file_name": name, "height": 40, "width": 60} for name, number in names_and_ids]
        _, predictions = write(tmp_path, TRUTH, prediction(images))
        found = {annotation.id: annotation.image.id for annotation in predictions.all()}
        return found, len(predictions.images), predictions.passed_over

    # By id; by name; by the last part of the name.
    assert matched(("a.jpg", 4), ("b.jpg", 2)) == ({0: 4, 1: 2}, 2, 0)
    assert matched(("sub/a.jpg", 2), ("b.jpg", 4)) == ({0: 4, 1: 2}, 2, 0)
    assert matched(("a.jpg", 1), ("x/b.jpg", 2)) == ({0: 4, 1: 2}, 2, 0)
    # Fewer and more images than the truth; a last part that is not unique.
    assert matched(("b.jpg", 1)) == ({0: 2}, 1, 0)
    assert matched(("b.jpg", 1), ("c.jpg", 4)) == ({0: 2}, 1, 1)
    assert matched(("x/a.jpg", 1), ("y/a.jpg", 2), ("b.jpg", 3)) == ({2: 2}, 1, 2)

    other = [{"id": 4, "file_name": "c.jpg", "height": 40, "width": 60}]
    refuses(tmp_path, prediction(other), "truth.json", "none of the 1", "`file_name`", "of the 2", "c.jpg", "b.jpg")
    turned = [{"id": 1, "file_name": "b.jpg", "height": 60, "width": 40}]
    refuses(tmp_path, prediction(turned), "image 1, 'b.jpg': `height` and `width` are 60 and 40 but 40 and 60")
    foreign = prediction([{"id": 1, "file_name": "b.jpg", "height": 40, "width": 60}])
    foreign["annotations"][0]["image_id"] = 2
    refuses(tmp_path, foreign, "annotation 0: `image_id` 2 is not among the 1 images;")


def test_within(tmp_path: Path) -> None:
    truth, predictions = write(tmp_path, *random_scene(0))
    part = truth.within(truth.images[3:5])
    assert len(part.images) == 2
    assert {entry.image.id for entry in part.all()} == {image.id for image in truth.images[3:5]}
    assert predictions.within(part.images).images == part.images
