"""Self-training's merge, written plainly: sets of pixels, one pair at a time."""

from fractions import Fraction

Mask = frozenset[tuple[int, int]]


def iou(left: Mask, right: Mask) -> Fraction:
    union = len(left | right)
    return Fraction(len(left & right), union) if union else Fraction(0)


def merge(
    previous: list[Mask],
    predictions: list[tuple[Mask, float]],
    min_score: float,
    max_overlap: float,
    nms: float | None,
) -> tuple[list[int], list[int]]:
    """The indices of the older masks that stay, and of the predictions that are taken, surest first."""
    limit = Fraction(max_overlap)
    taken: list[int] = []
    for index in sorted(range(len(predictions)), key=lambda i: (-predictions[i][1], i)):
        mask, score = predictions[index]
        if not mask or score < min_score:
            continue
        if nms is not None and any(iou(mask, predictions[other][0]) >= Fraction(nms) for other in taken):
            continue
        taken.append(index)
    kept = [
        index
        for index, mask in enumerate(previous)
        if mask and all(iou(mask, predictions[other][0]) < limit for other in taken)
    ]
    return kept, taken
