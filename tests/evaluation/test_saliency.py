import json
from pathlib import Path

import numpy as np
import pytest

from figureground.data.truth import read_predictions, read_truth
from figureground.evaluation.saliency import evaluate_saliency, f_curve, s_measure, saliency_map, score_map
from tests.evaluation.scenes import describe, random_scene, write
from tests.reference import evaluation as reference


def random_maps(seed: int, count: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Soft maps that lean towards their masks; some are binary, empty, or hold the thresholds themselves."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for index in range(count):
        height, width = rng.integers(5, 14, 2)
        mask = rng.random((height, width)) < rng.uniform(0.1, 0.8)
        mask[0, 0], mask[-1, -1] = True, False
        soft = np.clip(0.3 * mask + rng.normal(0.3, 0.3, mask.shape), 0, 1)
        soft = [soft, np.round(soft), np.round(soft * 254) / 254, np.zeros_like(soft)][(index + seed) % 4]
        maps.append(soft)
        masks.append(mask)
    return maps, masks


@pytest.mark.parametrize("seed", range(3))
def test_f_agrees_with_a_loop(seed: int) -> None:
    maps, masks = random_maps(seed)
    curve = np.mean([f_curve(soft, mask) for soft, mask in zip(maps, masks, strict=True)], axis=0)
    assert curve.max() == pytest.approx(reference.max_f(maps, masks), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_s_measure_agrees_with_a_loop(seed: int) -> None:
    for soft, mask in zip(*random_maps(seed, 8), strict=True):
        assert s_measure(soft, mask) == pytest.approx(reference.s_measure(soft, mask), abs=1e-9)


def test_s_measure_at_the_ends() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    soft = np.full((6, 8), 0.25)
    assert s_measure(soft, mask) == 0.75
    assert s_measure(soft, ~mask) == 0.25
    mask[2:5, 3:6] = True
    assert s_measure(mask.astype(float), mask) == pytest.approx(1)
    assert s_measure(1 - mask.astype(float), mask) == 0
    one = np.zeros((6, 8), dtype=bool)
    one[5, 7] = True
    assert s_measure(one.astype(float), one) == pytest.approx(1)


def test_the_plain_measures() -> None:
    mask = np.array([[True, True, False, False]])
    score = score_map(np.array([[1.0, 0.5, 0.75, 0.0]]), mask)
    # 0.5 is not above 0.5.
    assert (score.iou, score.accuracy, score.mae) == (1 / 3, 0.5, 0.3125)
    # All pixels pass the first threshold: precision 1/2, recall 1.
    assert score.f_curve[0] == pytest.approx(1.3 * 0.5 / (0.3 * 0.5 + 1))
    assert score.f_curve[-1] == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))


def test_the_curve_is_averaged_before_the_maximum(tmp_path: Path) -> None:
    """Two images whose best thresholds differ: the mean of their maxima would be 1."""
    masks = [np.zeros((10, 10), dtype=bool) for _ in range(3)]
    masks[0][:5], masks[1][5:], masks[2][:, :5] = True, True, True
    images = [{"id": i, "file_name": f"{i}.png", "height": 10, "width": 10} for i in (1, 2)]
    truth = [{"id": 1, "image_id": 1, **describe(masks[0])}, {"id": 2, "image_id": 2, **describe(masks[0] | masks[1])}]
    found = [
        {"image_id": 1, **describe(masks[0]), "score": 0.9},
        {"image_id": 1, **describe(masks[1]), "score": 0.3},
        {"image_id": 2, **describe(masks[0]), "score": 0.9},
        {"image_id": 2, **describe(masks[1]), "score": 0.3},
    ]
    files = write(tmp_path, {"images": images, "annotations": truth}, found)
    half, whole = 1.3 * 0.5 / (0.3 * 0.5 + 1), 1.3 * 0.5 / (0.3 + 0.5)
    union = evaluate_saliency(*files, np.random.default_rng(0), "union", resamples=50)
    assert union["max_f"].value == pytest.approx(max((half + 1) / 2, (1 + whole) / 2))
    surest = evaluate_saliency(*files, np.random.default_rng(0), "surest", resamples=0)
    assert surest["max_f"].value == pytest.approx((1 + whole) / 2)
    assert surest["max_f"].low is None
    assert surest["iou"].value == 0.75
    assert tuple(surest) == ("iou", "accuracy", "max_f", "s_measure", "mae")


def test_maps_of_instances(tmp_path: Path) -> None:
    left, right = np.zeros((4, 6), dtype=bool), np.zeros((4, 6), dtype=bool)
    left[:, :4], right[:, 2:] = True, True
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": 4, "width": 6}],
        "annotations": [{"id": 1, "image_id": 1, **describe(left)}],
    }
    found = [{"image_id": 1, **describe(left), "score": 0.2}, {"image_id": 1, **describe(right), "score": 0.8}]
    files, predictions = write(tmp_path, truth, found)
    [image] = files.images
    assert saliency_map(predictions.of(image), image, "surest")[0].tolist() == [0, 0, 1, 1, 1, 1]
    assert saliency_map(predictions.of(image), image, "union")[0].tolist() == [0.25, 0.25, 1, 1, 1, 1]
    assert not saliency_map((), image, "union").any()
    for entry in found:
        del entry["score"]
    _, predictions = write(tmp_path, truth, found)
    assert saliency_map(predictions.of(image), image, "union").all()
    zero = [{**entry, "score": 0} for entry in found]
    _, predictions = write(tmp_path, truth, zero)
    assert saliency_map(predictions.of(image), image, "union").all()
    boxes = [{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]
    _, predictions = write(tmp_path, truth, boxes)
    with pytest.raises(ValueError, match="has no mask"):
        saliency_map(predictions.of(image), image, "union")


def test_images_without_foreground_are_left_out_and_without_prediction_count(tmp_path: Path) -> None:
    truth, detections = random_scene(0)
    files = write(tmp_path, truth, detections)
    everything = evaluate_saliency(*files, np.random.default_rng(0))
    with_truth = {entry["image_id"] for entry in truth["annotations"]}
    fewer = {**truth, "images": [image for image in truth["images"] if image["id"] in with_truth]}
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    read = read_truth(tmp_path / "fewer.json")
    (tmp_path / "found.json").write_text(json.dumps([entry for entry in detections if entry["image_id"] in with_truth]))
    again = evaluate_saliency(read, read_predictions(tmp_path / "found.json", read), np.random.default_rng(0))
    assert again == everything
    nothing = evaluate_saliency(*write(tmp_path, truth, []), np.random.default_rng(0))
    assert nothing["iou"].value == 0
    empty = evaluate_saliency(*write(tmp_path, {**truth, "annotations": []}, []), np.random.default_rng(0))
    assert all(measure.value is None for measure in empty.values())
