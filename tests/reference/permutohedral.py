"""The permutohedral lattice as its paper tells it: rounding in d+1 coordinates, a hash table, one point at a time."""

import numpy as np


def filter_points(features, values):
    """Splat, blur along the d+1 directions in order, slice; ``(N, d)`` and ``(N,)`` arrays to ``(N,)``."""
    simplices = [_simplex(point) for point in np.asarray(features, np.float64)]
    table: dict[tuple, float] = {}
    for simplex, value in zip(simplices, values, strict=True):
        for corner, weight in simplex:
            table[corner] = table.get(corner, 0.0) + weight * value
    d = features.shape[1]
    for axis in range(d + 1):
        direction = np.ones(d + 1, int)
        direction[axis] -= d + 1
        table = {
            corner: total + sum(table.get(tuple(np.array(corner) + s * direction), 0.0) for s in (-1, 1)) / 2
            for corner, total in table.items()
        }
    return np.array([sum(table[corner] * weight for corner, weight in simplex) for simplex in simplices])


def gaussian_filter(features, values):
    """The sum that the lattice approximates, over all pairs of points."""
    features = np.asarray(features, np.float64)
    squares = ((features[:, None] - features[None]) ** 2).sum(-1)
    return np.exp(-squares / 2) @ np.asarray(values, np.float64)


def _simplex(point):
    """The d+1 lattice corners around a point, each with its barycentric weight."""
    d = len(point)
    x = np.zeros(d + 1)
    for i, value in enumerate(point):
        length = (d + 1) * np.sqrt(2 / 3) / np.sqrt((i + 1) * (i + 2))
        x[: i + 1] += value * length
        x[i + 1] -= value * length * (i + 1)
    # The nearest point of which all coordinates are multiples of d+1, moved back into the plane of sum 0.
    nearest = np.round(x / (d + 1)).astype(int) * (d + 1)
    order = np.argsort(-(x - nearest), kind="stable")
    excess = nearest.sum() // (d + 1)
    if excess > 0:
        nearest[order[d + 1 - excess :]] -= d + 1
    elif excess < 0:
        nearest[order[:-excess]] += d + 1
    order = np.argsort(-(x - nearest), kind="stable")
    gaps = (x - nearest)[order]
    corners = []
    for k in range(d + 1):
        corner = nearest + k
        corner[order[d + 1 - k :]] -= d + 1
        weight = (gaps[d - k] - gaps[d - k + 1]) / (d + 1) if k else 1 - (gaps[0] - gaps[d]) / (d + 1)
        corners.append((tuple(corner.tolist()), weight))
    return corners
