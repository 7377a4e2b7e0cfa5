"""Several predictions of one truth: the same numbers as one by one, and differences that are paired."""

from pathlib import Path

import numpy as np
import pytest

from figureground.data.truth import AnnotationSet
from figureground.evaluation.bootstrap import bootstrap_difference, bootstrap_mean
from figureground.evaluation.corloc import corloc
from figureground.evaluation.instance_ap import evaluate_instances
from figureground.evaluation.paired import as_per_cent, foreground_iou, measure
from figureground.evaluation.saliency import evaluate_saliency
from tests.evaluation.scenes import random_scene, write


@pytest.fixture
def scene(tmp_path: Path) -> tuple[AnnotationSet, AnnotationSet]:
    return write(tmp_path, *random_scene(3))


def test_the_same_as_each_measure_by_itself(scene: tuple[AnnotationSet, AnnotationSet]) -> None:
    truth, predictions = scene
    measures = measure(truth, predictions, True, seed=0, resamples=50)
    for kind in ("box", "mask"):
        expected = evaluate_instances(truth, predictions, kind).estimates(np.random.default_rng(0), 50)
        for name in ("ap", "ap50", "ar10", "ar100"):
            assert measures[f"{kind}_{name}"].estimate() == expected[name]
    expected = bootstrap_mean(corloc(truth, predictions), np.random.default_rng(0), 50)
    assert measures["corloc"].estimate() == expected
    expected = evaluate_saliency(truth, predictions, np.random.default_rng(0), "surest", 50)["iou"]
    found = measures["iou"].estimate()
    for name in ("value", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    assert "iou" not in measure(truth, predictions, False, resamples=0)


def test_differences_are_paired(scene: tuple[AnnotationSet, AnnotationSet], tmp_path: Path) -> None:
    truth, first = scene
    truth_content, detections = random_scene(3)
    worse = [entry for entry in detections if entry["image_id"] % 2]
    _, second = write(tmp_path, truth_content, worse)
    left, right = (measure(truth, each, True, seed=4, resamples=200) for each in (second, first))
    difference = left["iou"].less(right["iou"])
    expected = bootstrap_difference(
        foreground_iou(truth, second), foreground_iou(truth, first), np.random.default_rng(4), 200
    )
    for name in ("value", "low", "high"):
        assert getattr(difference, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    same = right["mask_ap"].less(right["mask_ap"])
    assert (same.value, same.low, same.high) == (0, 0, 0)
    row = as_per_cent(left, right)["box_ar100"]
    assert row["difference"] < 0
    assert row["difference_low"] <= row["difference"] <= row["difference_high"] <= 0
    assert row["difference"] == pytest.approx(row["value"] - as_per_cent(right, None)["box_ar100"]["value"], abs=1e-5)


def test_a_truth_without_objects_defines_nothing(scene: tuple[AnnotationSet, AnnotationSet], tmp_path: Path) -> None:
    content, _ = random_scene(3)
    truth, predictions = write(tmp_path, {**content, "annotations": []}, [])
    rows = as_per_cent(measure(truth, predictions, True), measure(truth, predictions, True))
    assert {row["value"] for row in rows.values()} == {None}
    assert {row["difference"] for row in rows.values()} == {None}
