"""Vectors to clusters by K-means, and how many clusters there shall be."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score


@dataclass(frozen=True, slots=True, eq=False)
class Grouping:
    """Which vector is in which cluster.

    Attributes:
        clusters: Of each vector, from 1, the largest cluster first; every number up to the largest is used.
        distances: Of each vector to the centre of its cluster.
        silhouettes: Of each number of clusters that was tried; empty where the number was given.
    """

    clusters: Int[np.ndarray, "N"]
    distances: Float[np.ndarray, "N"]
    silhouettes: dict[int, float]


def group(
    vectors: Float[np.ndarray, "N D"],
    k: int | None,
    *,
    candidates: Sequence[int] = (),
    sample: int = 2000,
    restarts: int = 3,
    seed: int = 0,
) -> Grouping:
    """Cluster vectors by K-means; the same every time.

    Args:
        vectors: Of unit length.
        k: How many clusters, no more than vectors (there are fewer where fewer vectors differ); ``None``: that of the
            candidates with the greatest mean silhouette, the smallest of several.
        candidates: Numbers of clusters to try; those that fit.
        sample: The silhouette is that of at most so many vectors, the same for all candidates.
        restarts: Beginnings of K-means, the best of which counts.
        seed: Of the beginnings and of the sample.

    Reference:
        Rousseeuw, Silhouettes, 1987, here with Euclidean distance. K-means: Lloyd, 1982, from the beginnings of Arthur
        and Vassilvitskii, k-means++, 2007.
    """

    def fit(count: int) -> Any:
        beginnings: Any = restarts
        means = KMeans(count, n_init=beginnings, random_state=seed)
        with warnings.catch_warnings():
            # Fewer vectors that differ than clusters: then there are fewer.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return means.fit(vectors)

    silhouettes: dict[int, float] = {}
    if k is None:
        chosen = np.random.default_rng(seed).permutation(len(vectors))[:sample]
        for count in sorted(set(candidates)):
            if 2 <= count < len(vectors):
                labels = fit(count).labels_[chosen]
                if 2 <= len(np.unique(labels)) < len(chosen):
                    silhouettes[count] = float(silhouette_score(vectors[chosen], labels))
        # Where nothing can be compared there is one cluster.
        k = max(silhouettes, key=lambda count: silhouettes[count], default=1)
    means = fit(k)
    distances = np.linalg.norm(vectors - means.cluster_centers_[means.labels_], axis=1)
    return Grouping(_by_size(means.labels_), distances, silhouettes)


def _by_size(labels: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Number clusters from 1 by their size, of equally large ones that with the first member first."""
    _, first, members, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(1, len(first) + 1)
    return rank[members]
