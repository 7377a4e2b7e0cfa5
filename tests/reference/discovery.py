"""LOST, FOUND's background and Matrix-NMS, written plainly: loops over patches and pairs, in float64."""

import math
from collections import deque

import numpy as np


def lost(values: np.ndarray, k: int, seed: int | None = None, order: list[int] | None = None) -> tuple[int, np.ndarray]:
    """Seed and mask; ``seed`` and ``order`` (patches by degree) may be given, where ties leave a choice."""
    h, w, width = values.shape
    patches = [vector.astype(np.float64) for vector in values.reshape(h * w, width)]
    degree = [sum(1 for q in range(h * w) if q != p and patches[p] @ patches[q] > 0) for p in range(h * w)]
    order = order or sorted(range(h * w), key=lambda p: (degree[p], p))
    seed = order[0] if seed is None else seed
    chosen = [p for p in order[:k] if patches[p] @ patches[seed] > 0]
    inside = [sum(patches[p] @ patches[q] for q in chosen) > 0 for p in range(h * w)]
    return seed, flood(np.array(inside).reshape(h, w), divmod(seed, w))


def flood(mask: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """The 4-connected component of a mask at a place."""
    found = np.zeros_like(mask)
    queue = deque([start] if mask[start] else [])
    while queue:
        i, j = queue.popleft()
        if not (0 <= i < mask.shape[0] and 0 <= j < mask.shape[1]) or found[i, j] or not mask[i, j]:
            continue
        found[i, j] = True
        queue += [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
    return found


def found_background(values: np.ndarray, attention: np.ndarray, threshold: float, weigh: bool) -> np.ndarray:
    """Patches that are like the one attended to least."""
    h, w, width = values.shape
    heads = len(attention)
    mean = attention.astype(np.float64).mean()
    attended = [float(np.mean(row > mean)) for row in attention]
    weights = [math.log(sum(attended) / share) if weigh else 1.0 for share in attended]
    least = [sum(weights[a] * attention[a, p] for a in range(heads)) for p in range(h * w)]
    seed = min(range(h * w), key=lambda p: (least[p], p))
    scale = np.repeat(weights, width // heads)
    patches = [vector.astype(np.float64) * scale for vector in values.reshape(h * w, width)]
    lengths = [math.sqrt(vector @ vector) for vector in patches]
    inside = [patches[p] @ patches[seed] > threshold * lengths[p] * lengths[seed] for p in range(h * w)]
    return np.array(inside).reshape(h, w)


def matrix_nms(masks: np.ndarray, scores: list[float], sigma: float) -> list[float]:
    """Scores after Matrix-NMS with the Gaussian kernel; of equal scores the earlier mask is the surer one."""

    def iou(a: int, b: int) -> float:
        union = np.logical_or(masks[a], masks[b]).sum()
        return float(np.logical_and(masks[a], masks[b]).sum() / union) if union else 0.0

    def surer(of: int) -> list[int]:
        return [other for other in range(len(scores)) if (-scores[other], other) < (-scores[of], of)]

    lowered = []
    for j, score in enumerate(scores):
        decay = 1.0
        for i in surer(j):
            worst = max((iou(i, above) for above in surer(i)), default=0.0)
            decay = min(decay, math.exp(-sigma * iou(i, j) ** 2) / math.exp(-sigma * worst**2))
        lowered.append(score * decay)
    return lowered


def agglomerate(values: np.ndarray, threshold: float) -> np.ndarray:
    """Regions (numbered by their first patch) once no two neighbours are as alike as ``threshold``."""
    h, w, width = values.shape
    unit = values.reshape(h * w, width).astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    owner = np.arange(h * w).reshape(h, w)

    def cosine(a: int, b: int) -> float:
        left, right = unit[owner.ravel() == a].mean(0), unit[owner.ravel() == b].mean(0)
        return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))

    while True:
        across = {(min(a, b), max(a, b)) for a, b in zip(owner[:, :-1].flat, owner[:, 1:].flat, strict=True) if a != b}
        down = {(min(a, b), max(a, b)) for a, b in zip(owner[:-1].flat, owner[1:].flat, strict=True) if a != b}
        alike = {pair: cosine(*pair) for pair in across | down}
        best = max(alike, key=lambda pair: alike[pair], default=None)
        if best is None or alike[best] < threshold:
            return owner
        owner[owner == best[1]] = best[0]
