"""AP and AR are pycocotools' own, and a resampled list of images gives what pycocotools gives for it."""

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from figureground.evaluation.instance_ap import evaluate_instances
from tests.evaluation.scenes import coco128, jittered, random_scene, write
from tests.reference.evaluation import coco_stats

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
KINDS: tuple[tuple[Literal["box", "mask"], str], ...] = (("box", "bbox"), ("mask", "segm"))


def agree(values: dict[str, float | None], stats: np.ndarray) -> None:
    assert tuple(values) == NAMES
    for name, expected in zip(NAMES, stats, strict=True):
        if expected == -1:
            assert values[name] is None, name
        else:
            assert values[name] == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize(("kind", "coco_kind"), KINDS)
@pytest.mark.parametrize(("seed", "levels"), [(0, 1000), (1, 3), (2, 1)])
def test_random(kind: Any, coco_kind: str, seed: int, levels: int, tmp_path: Path) -> None:
    truth, detections = random_scene(seed, levels=levels)
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    evaluation = evaluate_instances(*write(tmp_path, truth, detections), kind)
    agree(evaluation.values, coco_stats(truth, detections, coco_kind))
    same = evaluation.resampled(np.ones((1, len(truth["images"])), dtype=np.int64))
    for name, value in evaluation.values.items():
        assert same[name][0] == pytest.approx(np.nan if value is None else value, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(("kind", "coco_kind"), KINDS)
def test_nothing_found(kind: Any, coco_kind: str, tmp_path: Path) -> None:
    truth, _ = random_scene(0)
    evaluation = evaluate_instances(*write(tmp_path, truth, []), kind)
    agree(evaluation.values, coco_stats(truth, [], coco_kind))
    estimates = evaluation.estimates(np.random.default_rng(0), 20)
    assert (estimates["ap"].value, estimates["ap"].low, estimates["ar100"].high) == (0, 0, 0)


@pytest.mark.parametrize(("kind", "coco_kind"), KINDS)
def test_real(kind: Any, coco_kind: str, shared: Path, tmp_path: Path) -> None:
    content = coco128(shared)
    truth, _ = write(tmp_path, content, [])
    detections = jittered(truth, 0)
    evaluation = evaluate_instances(*write(tmp_path, content, detections), kind)
    agree(evaluation.values, coco_stats(content, detections, coco_kind))
    assert 0.1 < (evaluation.values["ap"] or 0) < 0.9
    estimates = evaluation.estimates(np.random.default_rng(0), 500)
    low, value, high = estimates["ap"].low, estimates["ap"].value, estimates["ap"].high
    assert low is not None
    assert high is not None
    assert low < (value or 0) < high < low + 0.2


@pytest.mark.parametrize(("kind", "coco_kind"), KINDS)
def test_resampled_images_are_evaluated_as_pycocotools_would(kind: Any, coco_kind: str, tmp_path: Path) -> None:
    """Each drawn image is written out as often as it was drawn."""
    truth, detections = random_scene(3, levels=100_000)
    evaluation = evaluate_instances(*write(tmp_path, truth, detections), kind)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=3)
    resampled = evaluation.resampled(weights)
    for row, counts in enumerate(weights):
        copies: dict[str, Any] = {**truth, "images": [], "annotations": []}
        found = []
        for image, count in zip(truth["images"], counts, strict=True):
            for _ in range(count):
                number = len(copies["images"]) + 1
                copies["images"].append({**image, "id": number})
                for entry in truth["annotations"]:
                    if entry["image_id"] == image["id"]:
                        identity = len(copies["annotations"]) + 1
                        copies["annotations"].append({**entry, "id": identity, "image_id": number})
                found += [{**entry, "image_id": number} for entry in detections if entry["image_id"] == image["id"]]
        agree(
            {name: None if np.isnan(part[row]) else float(part[row]) for name, part in resampled.items()},
            coco_stats(copies, found, coco_kind),
        )


def test_one_category_and_no_categories_differ_in_order_only(shared: Path, tmp_path: Path) -> None:
    content = coco128(shared)
    truth, _ = write(tmp_path, content, [])
    detections = jittered(truth, 1)
    rng = np.random.default_rng(0)
    for entry in detections:
        entry["score"] = float(rng.random())
    classes = copy.deepcopy(content)
    numbers = sorted({entry["orig_category_id"] for entry in content["annotations"]})
    classes["categories"] = [{"id": number, "name": str(number)} for number in numbers]
    for entry in classes["annotations"]:
        entry["category_id"] = entry["orig_category_id"]
    found = [{**entry, "category_id": numbers[0]} for entry in detections]
    evaluation = evaluate_instances(*write(tmp_path, content, detections), "box")
    agree(evaluation.values, coco_stats(classes, found, "bbox", use_cats=False))


def test_every_detection_that_is_asked_for_counts(tmp_path: Path) -> None:
    """One object, found by the 150th detection only."""
    truth, _ = random_scene(0, images=2)
    box = [40, 40, 50, 50]
    truth["annotations"] = [{"id": 1, "image_id": 3, "bbox": box, "area": 2500, "iscrowd": 0}]
    wrong = [{"image_id": 3, "bbox": [0, 0, 9, 9], "score": 1 - index / 1000} for index in range(149)]
    files = write(tmp_path, truth, [*wrong, {"image_id": 3, "bbox": box, "score": 0.1}])
    few = evaluate_instances(*files, "box")
    assert (few.values["ar100"], few.values["ap"]) == (0, 0)
    many = evaluate_instances(*files, "box", max_detections=(300, 1, 1000, 10, 100))
    assert tuple(many.values) == (*NAMES[:9], "ar300", "ar1000", *NAMES[9:])
    assert (many.values["ar100"], many.values["ar300"], many.values["ar1000"]) == (0, 1, 1)
    assert many.values["ap"] == pytest.approx(1 / 150)
    assert many.values["ar_medium"] == 1
    assert many.values["ar_small"] is None


def test_difficult_objects_are_neither_missed_nor_false(tmp_path: Path) -> None:
    truth, _ = random_scene(0, images=1)
    boxes = [[0, 0, 40, 40], [60, 60, 40, 40]]
    truth["annotations"] = [
        {"id": index, "image_id": 3, "bbox": box, "difficult": index} for index, box in enumerate(boxes)
    ]
    easy, hard = ({"image_id": 3, "bbox": box, "score": 0.5 + index / 10} for index, box in enumerate(boxes))
    # Wholly inside the difficult one, which is no crowd: its overlap is a half.
    inside = {**hard, "bbox": [60, 60, 20, 40]}
    for found, ap50, ap75, lenient_ap50, lenient_ap75 in (
        ([easy], 51 / 101, 51 / 101, 1, 1),
        ([easy, hard], 1, 1, 1, 1),
        ([easy, inside], 1, 51 / 202, 1, 1 / 2),
    ):
        files = write(tmp_path, truth, found)
        values = evaluate_instances(*files, "box").values
        lenient = evaluate_instances(*files, "box", skip_difficult=True).values
        assert [values["ap50"], values["ap75"]] == pytest.approx([ap50, ap75])
        assert [lenient["ap50"], lenient["ap75"]] == pytest.approx([lenient_ap50, lenient_ap75])


def test_without_scores_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    truth, detections = random_scene(4)
    for entry in detections:
        del entry["score"]
    areas = [entry["area"] for entry in detections]
    results = []
    for order in (detections, detections[::-1]):
        evaluation = evaluate_instances(*write(tmp_path, truth, order), "mask")
        results.append(evaluation.values["ap"])
    assert len(set(areas)) > 10
    assert results[0] == pytest.approx(results[1], abs=1e-3)
    scored = [{**entry, "score": entry["area"] / (120 * 160)} for entry in detections]
    assert evaluate_instances(*write(tmp_path, truth, scored), "mask").values["ap"] == results[0]


def test_mask_is_needed(tmp_path: Path) -> None:
    truth, _ = random_scene(0)
    files = write(tmp_path, truth, [{"image_id": 3, "bbox": [0, 0, 1, 1], "score": 1}])
    with pytest.raises(ValueError, match="has no mask"):
        evaluate_instances(*files, "mask")
