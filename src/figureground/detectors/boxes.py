"""Boxes as what a layer predicts: their difference to reference boxes, and back."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BoxWeights = tuple[float, float, float, float]

# A layer can at most enlarge a side from 16 px to 1000; more would be a number that has run away.
_MAX_LOG_SCALE = math.log(1000 / 16)


def encode(
    boxes: Float[Tensor, "R 4"], references: Float[Tensor, "R 4"], weights: BoxWeights = (1.0, 1.0, 1.0, 1.0)
) -> Float[Tensor, "R 4"]:
    """Difference of boxes to reference boxes: shift of the centre in sides, logarithm of the scale, each weighted.

    Args:
        boxes: Not empty.
        references: Not empty.
        weights: Of x, y, width and height: what brings the four to about one standard deviation.

    Reference:
        Girshick et al., R-CNN, CVPR 2014, appendix C.
    """
    sides, reference_sides = boxes[:, 2:] - boxes[:, :2], references[:, 2:] - references[:, :2]
    shift = (boxes[:, :2] + sides / 2 - references[:, :2] - reference_sides / 2) / reference_sides
    return torch.cat([shift, (sides / reference_sides).log()], dim=1) * boxes.new_tensor(weights)


def decode(
    deltas: Float[Tensor, "*R 4"], references: Float[Tensor, "*R 4"], weights: BoxWeights = (1.0, 1.0, 1.0, 1.0)
) -> Float[Tensor, "*R 4"]:
    """The boxes that :func:`encode` made ``deltas`` of."""
    deltas = deltas / deltas.new_tensor(weights)
    sides = references[..., 2:] - references[..., :2]
    centres = references[..., :2] + sides / 2 + deltas[..., :2] * sides
    half = deltas[..., 2:].clamp(max=_MAX_LOG_SCALE).exp() * sides / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def clip(boxes: Float[Tensor, "R 4"], size: tuple[int, int]) -> Float[Tensor, "R 4"]:
    """Cut boxes at the border of an image of ``size = (height, width)``."""
    height, width = size
    # By numbers, not by a tensor of them: that would have to be copied to the device, and waited for.
    return torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], dim=2).flatten(1)


def not_empty(boxes: Float[Tensor, "R 4"]) -> Bool[Tensor, "R"]:
    """Which boxes have an area; those of NaN have none."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)
