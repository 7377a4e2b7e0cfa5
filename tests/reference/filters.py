"""Otsu's threshold by trying every one."""

import numpy as np


def otsu(values: np.ndarray) -> float:
    """The threshold with the largest variance between the two classes."""
    best, threshold = -1.0, 0.0
    for candidate in np.arange(0, 1, 1 / 512):
        low, high = values[values <= candidate], values[values > candidate]
        if len(low) and len(high):
            between = len(low) * len(high) * (low.mean() - high.mean()) ** 2
            if between > best + 1e-9:
                best, threshold = between, candidate
    return threshold
