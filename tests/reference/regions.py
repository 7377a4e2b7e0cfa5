"""Boxes, anchors, levels and pasted masks one number at a time, from the papers of Faster R-CNN, FPN and Mask R-CNN."""

import math

import numpy as np


def decode(delta: list[float], box: list[float], weights: list[float]) -> list[float]:
    dx, dy, dw, dh = (d / w for d, w in zip(delta, weights, strict=True))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * width, (box[1] + box[3]) / 2 + dy * height
    width *= math.exp(min(dw, math.log(1000 / 16)))
    height *= math.exp(min(dh, math.log(1000 / 16)))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def anchors(map_size: tuple[int, int], stride: int, size: float, ratios: list[float]) -> list[list[float]]:
    result = []
    for row in range(map_size[0]):
        for column in range(map_size[1]):
            for ratio in ratios:
                width = math.sqrt(size * size / ratio)
                height = ratio * width
                x, y = column * stride, row * stride
                result.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return result


def matches(
    overlaps: np.ndarray, positive_iou: float, negative_iou: float, rescue: bool
) -> list[tuple[int | None, str]]:
    """For each box its object, where it stands for one, and what it is."""
    objects, boxes = overlaps.shape
    result = []
    for box in range(boxes):
        best = max(range(objects), key=lambda o: overlaps[o, box]) if objects else None
        most = overlaps[best, box] if objects else 0.0
        rescued = rescue and any(overlaps[o, box] > 0 and overlaps[o, box] == overlaps[o].max() for o in range(objects))
        if objects and (most >= positive_iou or rescued):
            result.append((best, "positive"))
        else:
            result.append((None, "negative" if most < negative_iou else "neither"))
    return result


def level(box: list[float]) -> int:
    """Equation 1 of FPN: 0 for P2 to 3 for P5."""
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return min(max(math.floor(4 + math.log2(side / 224)), 2), 5) - 2


def bilinear(values: np.ndarray, y: float, x: float) -> float:
    """A value between cells, whose centres are at whole numbers; zero outside."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < values.shape[0] and 0 <= column < values.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * values[row, column]
    return total


def paste(values: np.ndarray, box: list[float], size: tuple[int, int]) -> np.ndarray:
    """The soft mask of a box in an image, before the threshold."""
    side = len(values)
    result = np.zeros(size)
    for row, column in np.ndindex(size):
        y = (row + 0.5 - box[1]) / (box[3] - box[1]) * side - 0.5
        x = (column + 0.5 - box[0]) / (box[2] - box[0]) * side - 0.5
        result[row, column] = bilinear(values, y, x)
    return result


def nms(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    from tests.reference.drop_loss import iou

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept
