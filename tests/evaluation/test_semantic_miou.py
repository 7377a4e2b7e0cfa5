import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figureground.evaluation.semantic_miou import (
    Criterion,
    ImageConfusions,
    confusion_matrix,
    majority_classes,
    match_clusters,
    semantic_scores,
)
from tests.reference import semantic as slow


def label_maps(seed: int, clusters: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    predicted = rng.integers(clusters, size=(6, 7), dtype=np.uint8)
    truth = np.where(rng.random((6, 7)) < 0.5, predicted % classes, rng.integers(classes, size=(6, 7))).astype(np.uint8)
    truth[rng.random((6, 7)) < 0.1] = 255
    return predicted, truth


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.sampled_from(["iou", "pixels"]))
def test_against_slow_ones(seed: int, clusters: int, classes: int, by: Criterion) -> None:
    predicted, truth = label_maps(seed, clusters, classes)
    counts = confusion_matrix(predicted, truth, clusters, classes)
    np.testing.assert_array_equal(counts, slow.confusion(predicted, truth, clusters, classes, 255))

    matched = match_clusters(counts, by)
    used = [found for found in matched if found is not None]
    assert len(set(used)) == len(used) == min(clusters, classes)
    gain = counts.astype(float)
    if by == "iou":
        gain = gain / np.maximum(gain.sum(1, keepdims=True) + gain.sum(0, keepdims=True) - gain, 1)
    total = sum(gain[i, j] for i, j in enumerate(matched) if j is not None)
    assert total == pytest.approx(slow.best_total(counts, by))

    for assignment in (matched, majority_classes(counts)):
        renamed = np.array([-1 if found is None else found for found in assignment])[predicted]
        scores = semantic_scores(counts, assignment)
        expected = [slow.iou_of(renamed, truth, label, 255) for label in range(classes)]
        assert scores.per_class == pytest.approx(expected)
        known = [value for value in expected if value is not None]
        assert scores.miou == pytest.approx(np.mean(known))
        assert scores.accuracy == pytest.approx((renamed == truth)[truth != 255].mean())


def test_over_clustering_is_matched_many_to_one() -> None:
    counts = np.array([[5, 0], [4, 1], [0, 3], [0, 0]])
    assert majority_classes(counts) == (0, 0, 1, None)
    assert semantic_scores(counts, majority_classes(counts)).accuracy == pytest.approx(12 / 13)
    assert match_clusters(counts) == (0, None, 1, None)
    # What stands for no class is missing where it belongs, and nowhere too many.
    assert semantic_scores(counts, (0, None, 1, None)).per_class == pytest.approx((5 / 9, 3 / 4))


def test_criteria_differ() -> None:
    """Common pixels give the large cluster the large class; IoU sees that the two small ones then fit nothing."""
    counts = np.array([[50, 20], [20, 0]])
    assert match_clusters(counts, "pixels") == (0, 1)
    assert match_clusters(counts, "iou") == (1, 0)


def test_nothing_to_measure() -> None:
    counts = confusion_matrix(np.zeros((2, 2), dtype=int), np.full((2, 2), 9), 2, 3, ignore=9)
    scores = semantic_scores(counts, match_clusters(counts))
    assert (scores.miou, scores.per_class, scores.accuracy) == (None, (None, None, None), None)


def test_labels_out_of_range() -> None:
    with pytest.raises(ValueError, match="class label"):
        confusion_matrix(np.array([0]), np.array([3]), 2, 3)
    with pytest.raises(ValueError, match="cluster label"):
        confusion_matrix(np.array([-1]), np.array([0]), 2, 3)


def test_images_drawn_anew() -> None:
    rng = np.random.default_rng(3)
    images, clusters = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2])
    counts = rng.integers(0, 9, (6, 4))
    confusions = ImageConfusions(3, 3, 4)
    confusions.add(images[:4], clusters[:4], counts[:4])
    confusions.add(images[4:], clusters[4:], counts[4:])
    assert confusions.total().sum() == counts.sum()
    matched = match_clusters(confusions.total())
    draws = np.array([[1, 1, 1], [3, 0, 0], [0, 1, 2]])
    for weights, value in zip(draws, confusions.resampled(draws, matched), strict=True):
        expected = np.zeros((3, 4), dtype=np.int64)
        for image, cluster, row in zip(images, clusters, counts, strict=True):
            expected[cluster] += weights[image] * row
        assert value == pytest.approx(semantic_scores(expected, matched).miou)
    assert np.isnan(confusions.resampled(np.zeros((1, 3), dtype=int), matched)).all()
