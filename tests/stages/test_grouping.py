import numpy as np
import pytest
from numpy.testing import assert_array_equal

from figureground.stages.grouping import group
from figureground.stages.instance_features import pack, unpack


def blobs(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors near as many axes as there are sizes, shuffled, and the axis of each."""
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = np.eye(8)[labels] + rng.normal(scale=0.05, size=(len(labels), 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def silhouette(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Rousseeuw's definition, vector by vector."""
    values = []
    for index, label in enumerate(labels):
        distances = np.linalg.norm(vectors - vectors[index], axis=1)
        own = (labels == label) & (np.arange(len(labels)) != index)
        if not own.any():
            values.append(0.0)
            continue
        a = distances[own].mean()
        b = min(distances[labels == other].mean() for other in set(labels) - {label})
        values.append((b - a) / max(a, b))
    return float(np.mean(values))


def test_clusters_are_numbered_by_size() -> None:
    vectors, labels = blobs((5, 20, 11))
    found = group(vectors, 3)
    assert_array_equal(found.clusters, np.array([3, 1, 2])[labels])
    assert found.silhouettes == {}
    for label in range(3):
        centre = vectors[labels == label].mean(0)
        expected = np.linalg.norm(vectors[labels == label] - centre, axis=1)
        np.testing.assert_allclose(found.distances[labels == label], expected, atol=1e-5)
    assert_array_equal(group(vectors, 3).clusters, found.clusters)


def test_the_silhouette_chooses() -> None:
    vectors, labels = blobs((9, 14, 6, 10))
    found = group(vectors, None, candidates=(6, 2, 3, 4, 39, 500))
    assert found.clusters.max() == 4
    assert list(found.silhouettes) == [2, 3, 4, 6]
    assert found.silhouettes[4] == pytest.approx(silhouette(vectors, labels), abs=1e-5)
    assert group(vectors, None, candidates=(2, 3, 4, 6), sample=20).clusters.max() == 4


def test_too_few_to_choose() -> None:
    vectors, _ = blobs((1, 1))
    found = group(vectors, None, candidates=(2, 3))
    assert (found.clusters.tolist(), found.silhouettes) == ([1, 1], {})


def test_fewer_vectors_that_differ_than_clusters() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 0, 0, 1, 0]]
    assert group(vectors, 5).clusters.tolist() == [1, 2, 1, 1, 2, 1]


def test_packed_vectors() -> None:
    vectors, _ = blobs((3, 4))
    np.testing.assert_allclose(unpack(pack(vectors), 7), vectors, atol=5e-4)
