"""The losses of FOUND's head for one image, pixel by pixel, from section 3.2 of the paper."""

import math

import numpy as np

from tests.reference import bilateral
from tests.reference.discovery import found_background


def upsample(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, pixel centres aligned, the border repeated."""
    result = np.empty(size)
    for row, column in np.ndindex(size):
        y = min(max((row + 0.5) * values.shape[0] / size[0] - 0.5, 0), values.shape[0] - 1)
        x = min(max((column + 0.5) * values.shape[1] / size[1] - 0.5, 0), values.shape[1] - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
        upper = values[top, left] * (1 - x + left) + values[top, right] * (x - left)
        lower = values[bottom, left] * (1 - x + left) + values[bottom, right] * (x - left)
        result[row, column] = upper * (1 - y + top) + lower * (y - top)
    return result


def cross_entropy(probabilities: np.ndarray, target: np.ndarray) -> float:
    terms = [
        -math.log(p) if t else -math.log(1 - p) for p, t in zip(probabilities.ravel(), target.ravel(), strict=True)
    ]
    return sum(terms) / len(terms)


def refined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    solved = bilateral.solve(image, mask, 16, 16, 8, 256, 0.999) > 0.5
    union = (solved | mask).sum()
    return solved if union and (solved & mask).sum() / union > 0.5 else mask


def losses(logits: np.ndarray, values: np.ndarray, attention: np.ndarray, image: np.ndarray, step: int) -> dict:
    """The published constants; ``values`` are ``(h, w, D)``, ``attention`` ``(heads, N)``, ``image`` uint8."""
    size = image.shape[:2]
    probabilities = 1 / (1 + np.exp(-upsample(logits, size)))
    own = probabilities > 0.5
    result = {"refined": 1.5 * cross_entropy(probabilities, refined(image, own))}
    if step < 100:
        objects = ~found_background(values, attention, 0.3, True)
        result["background"] = cross_entropy(
            probabilities, refined(image, upsample(objects.astype(float), size) >= 0.5)
        )
    else:
        result["own"] = 4.0 * cross_entropy(probabilities, own)
    return result
