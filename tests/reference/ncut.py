"""Normalised cut, written plainly: the dense generalised eigenproblem in float64."""

import numpy as np
from scipy.linalg import eigh


def eigenpairs(affinity: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Second and further eigenpairs of (D - W) y = lambda D y; vectors are rows."""
    weights = affinity.astype(np.float64)
    degree = np.diag(weights.sum(1))
    values, vectors = eigh(degree - weights, degree, subset_by_index=[1, count])
    return values, vectors.T


def ncut(affinity: np.ndarray, side: np.ndarray) -> float:
    """Sum of the weights across, over the volume of each side."""
    across = sum(affinity[i, j] for i in np.flatnonzero(side) for j in np.flatnonzero(~side))
    return across / affinity[side].sum() + across / affinity[~side].sum()
