"""MaskContrast's losses, pixel by pixel."""

import math

import numpy as np


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def prototype(embedding: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Of one image: ``embedding`` is (D, H, W)."""
    total = np.zeros(len(embedding))
    for row, column in zip(*np.nonzero(mask), strict=True):
        total += unit(embedding[:, row, column])
    return unit(total)


def contrastive(query: np.ndarray, masks: np.ndarray, keys: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """Of a whole batch; images whose key is zero are left out."""
    present = [index for index, key in enumerate(keys) if key.any()]
    classes = [keys[index] for index in present] + list(queue)
    pixels = [
        (unit(query[index, :, row, column]), place)
        for place, index in enumerate(present)
        for row, column in zip(*np.nonzero(masks[index]), strict=True)
    ]
    loss = total = 0.0
    for pixel, label in pixels:
        logits = [float(pixel @ each) / temperature for each in classes]
        share = sum(other == label for _, other in pixels) / len(pixels)
        weight = 1 / math.log(1.02 + share)
        loss += weight * (math.log(sum(map(math.exp, logits))) - logits[label])
        total += weight
    return loss / total


def saliency(logits: np.ndarray, masks: np.ndarray) -> float:
    share = masks.sum() / masks.size
    loss = 0.0
    for logit, inside in zip(logits.ravel(), masks.ravel(), strict=True):
        probability = 1 / (1 + math.exp(-logit))
        loss -= (1 - share) * math.log(probability) if inside else share * math.log(1 - probability)
    return loss / masks.size
