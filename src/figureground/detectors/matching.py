"""Which box stands for which object, and which of them a head is trained on."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Matches(NamedTuple):
    """What each of ``R`` boxes is matched with. A box that is neither positive nor negative teaches nothing.

    Attributes:
        index: The object it overlaps most; means something where it is positive only.
        positive: Stands for that object.
        negative: Stands for the background.
    """

    index: Int[Tensor, "R"]
    positive: Bool[Tensor, "R"]
    negative: Bool[Tensor, "R"]

    def take(self, chosen: Int[Tensor, "S"]) -> "Matches":
        """The matches of some of the boxes."""
        return Matches(*(values[chosen] for values in self))


def match(
    iou: Float[Tensor, "M R"], positive_iou: float, negative_iou: float | None = None, *, rescue: bool = False
) -> Matches:
    """Match boxes with objects.

    Args:
        iou: Of each object with each box. Without objects every box is background.
        positive_iou: From this overlap on a box stands for the object.
        negative_iou: Below this overlap it is background; none: there is nothing between the two.
        rescue: Also let those boxes stand for their object that overlap some object more than all other boxes do, so
            that none is left without.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015, section 3.1.2. Deviates with ``rescue`` from the published code, which
        makes every box positive when an object overlaps none.
    """
    count = iou.shape[1]
    if len(iou) == 0:
        nothing = torch.zeros(count, dtype=torch.bool, device=iou.device)
        return Matches(nothing.long(), nothing, ~nothing)
    best, index = iou.max(0)
    positive = best >= positive_iou
    if rescue:
        most = iou.amax(1, keepdim=True)
        positive |= ((iou == most) & (most > 0)).any(0)
    return Matches(index, positive, (best < (negative_iou or positive_iou)) & ~positive)


def sample(
    matches: Matches, count: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Int[Tensor, "P"], Int[Tensor, "N"]]:
    """Draw the boxes that a head is trained on.

    Args:
        matches: Of all boxes.
        count: How many to draw; fewer only where there are no more.
        positive_fraction: At most this share is positive; negatives fill the rest.
        generator: Of the draw, on any device.

    Returns:
        Indices of positive and of negative boxes.
    """
    device = matches.positive.device
    keys = torch.rand(len(matches.positive), generator=generator, device=generator.device).to(device)
    positive = _draw(matches.positive, keys, int(count * positive_fraction))
    return positive, _draw(matches.negative, keys, count - len(positive))


def _draw(candidates: Bool[Tensor, "R"], keys: Float[Tensor, "R"], count: int) -> Int[Tensor, "S"]:
    places = candidates.nonzero()[:, 0]
    return places[keys[places].topk(min(count, len(places))).indices]
