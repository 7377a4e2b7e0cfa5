"""Semantic segmentation measured pixel by pixel, and matchings by trying all."""

from itertools import permutations

import numpy as np


def confusion(predicted: np.ndarray, truth: np.ndarray, clusters: int, classes: int, ignore: int) -> np.ndarray:
    counts = np.zeros((clusters, classes), dtype=int)
    for found, true in zip(predicted.ravel(), truth.ravel(), strict=True):
        if true != ignore:
            counts[found, true] += 1
    return counts


def best_total(counts: np.ndarray, by: str) -> float:
    """The greatest sum that a matching one to one has."""
    clusters, classes = counts.shape
    gain = counts.astype(float)
    if by == "iou":
        for i in range(clusters):
            for j in range(classes):
                gain[i, j] = counts[i, j] / max(counts[i].sum() + counts[:, j].sum() - counts[i, j], 1)
    if clusters > classes:
        gain = gain.T
    return max(sum(gain[i, j] for i, j in enumerate(order)) for order in permutations(range(gain.shape[1]), len(gain)))


def iou_of(predicted: np.ndarray, truth: np.ndarray, label: int, ignore: int) -> float | None:
    """IoU of one class from two label maps; a predicted -1 is no class."""
    there = truth != ignore
    left, right = (predicted == label) & there, (truth == label) & there
    union = int((left | right).sum())
    return int((left & right).sum()) / union if union else None


def purity(clusters: list[int], classes: list[str]) -> float:
    right = 0
    for cluster in set(clusters):
        members = [name for number, name in zip(clusters, classes, strict=True) if number == cluster]
        right += max(members.count(name) for name in members)
    return right / len(clusters)
