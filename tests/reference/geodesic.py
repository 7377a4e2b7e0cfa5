"""Slow, obvious references for the geodesic distance: Dijkstra, one patch at a time."""

import heapq
import math

import numpy as np


def step_costs(lab: np.ndarray) -> dict[tuple[tuple[int, int], tuple[int, int]], float]:
    """Cost of each step of the 4-neighbour grid, for mean colours of shape (h, w, 3)."""
    h, w = lab.shape[:2]
    raw = {
        (a, b): math.sqrt(sum((lab[a][c] - lab[b][c]) ** 2 for c in range(3)))
        for a in np.ndindex(h, w)
        for b in ((a[0] + 1, a[1]), (a[0] - 1, a[1]), (a[0], a[1] + 1), (a[0], a[1] - 1))
        if 0 <= b[0] < h and 0 <= b[1] < w
    }
    nearest = [min(cost for (a, _), cost in raw.items() if a == patch) for patch in np.ndindex(h, w)]
    usual = sum(nearest) / len(nearest)
    return {step: 0.0 if cost <= usual else cost for step, cost in raw.items()}


def distances(
    costs: dict[tuple[tuple[int, int], tuple[int, int]], float], sources: list[tuple[int, int]], shape: tuple[int, int]
) -> np.ndarray:
    """Length of the shortest path from the nearest source to each patch."""
    neighbours: dict[tuple[int, int], list[tuple[tuple[int, int], float]]] = {}
    for (a, b), cost in costs.items():
        neighbours.setdefault(a, []).append((b, cost))
    found = np.full(shape, np.inf)
    queue = [(0.0, source) for source in sources]
    heapq.heapify(queue)
    while queue:
        length, patch = heapq.heappop(queue)
        if length >= found[patch]:
            continue
        found[patch] = length
        for other, cost in neighbours.get(patch, []):
            heapq.heappush(queue, (length + cost, other))
    return found
