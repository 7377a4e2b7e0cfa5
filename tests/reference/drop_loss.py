"""DropLoss and soft targets one proposal at a time, from section 3.3 of CutLER and from CuVLER's soft target loss."""

import math


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union


def weights(boxes: list[list[float]], truth: list[list[float]], threshold: float) -> list[float]:
    result = []
    for box in boxes:
        overlaps = [iou(box, other) for other in truth]
        result.append(0.0 if overlaps and max(overlaps) <= threshold else 1.0)
    return result


def stage_losses(
    logits: list[list[float]],
    deltas: list[list[float]],
    boxes: list[list[float]],
    predicted: list[list[float]],
    truth: list[list[float]],
    scores: list[float],
    positive_iou: float,
    box_weights: list[float],
    threshold: float | None,
) -> tuple[float, float]:
    """Classification and box loss of one stage and one image of one category; ``scores`` are the pseudo-labels'."""
    classification = distance = 0.0
    for row, delta, box, guess in zip(logits, deltas, boxes, predicted, strict=True):
        overlaps = [iou(box, other) for other in truth]
        best = max(range(len(truth)), key=lambda i: overlaps[i]) if truth else None
        positive = best is not None and overlaps[best] >= positive_iou
        weight = scores[best] if positive else 1.0
        kept = 1.0 if threshold is None else weights([guess], truth, threshold)[0]
        total = sum(math.exp(logit) for logit in row)
        classification += kept * weight * -math.log(math.exp(row[0 if positive else 1]) / total)
        if positive:
            x1, y1, x2, y2 = box
            u1, v1, u2, v2 = truth[best]
            target = [
                ((u1 + u2) / 2 - (x1 + x2) / 2) / (x2 - x1),
                ((v1 + v2) / 2 - (y1 + y2) / 2) / (y2 - y1),
                math.log((u2 - u1) / (x2 - x1)),
                math.log((v2 - v1) / (y2 - y1)),
            ]
            distance += weight * sum(abs(d - w * t) for d, w, t in zip(delta, box_weights, target, strict=True))
    return classification / len(boxes), distance / len(boxes)
