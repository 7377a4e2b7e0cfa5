"""The attention map of DINO: the object is what the CLS token looks at.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin: Emerging properties in self-supervised vision transformers.
ICCV 2021. As a baseline for localisation: Siméoni et al., LOST, BMVC 2021 (``dino_seg``). Written from the papers.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.errors import UsageError
from figureground.ops.components import label_components
from figureground.proposals.interface import Method, to_instances
from figureground.structures import Instances, PatchFeatures


class AttentionConfig(Config):
    """Which attention, and how much of it."""

    mass: float = Field(
        default=0.6, gt=0, le=1, description="Share of the attention that the kept patches hold (paper: 0.6)."
    )
    head: int | None = Field(
        default=4, ge=0, description="Head, counted from 0 (LOST: 4, of a ViT-S/16); none: the mean of all heads."
    )


class Attention(Method):
    """The largest component of the patches that together hold most of the CLS token's attention.

    The score is the component's share of the attention less its share of the area: 0 where the token looks everywhere
    alike, near 1 where it looks at a small spot alone.

    Reference:
        Caron et al., ICCV 2021, section 4.2.2; Siméoni et al., BMVC 2021, section 4.1. Deviates in both presets:
        patches attended to as much as the last one kept are kept as well (the published code sorts unstably), and every
        component is looked at (the published code leaves the last one out, so that a single object loses to the
        background). ``default`` takes the mean of all heads, for which nobody has to look at the results of each.
    """

    PRESETS: ClassVar = {"default": AttentionConfig(head=None), "reference": AttentionConfig()}
    NEEDS_ATTENTION: ClassVar[bool] = True

    config: AttentionConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the pixels are not looked at.

        Raises:
            UsageError: If the features come without CLS attention, or there is no such head.
            ValueError: If the attention is negative or not finite.
        """
        attention = features.cls_attention
        if attention is None:
            raise UsageError(
                "The method 'attention' needs a backbone with a CLS token, and these features come without.",
                "Choose a vision transformer, as --backbone dino_s16.",
            )
        if not bool(torch.isfinite(attention).all()) or bool((attention < 0).any()):
            raise ValueError("CLS attention is finite and not negative: the weights are damaged.")
        head = self.config.head
        if head is not None and head >= attention.shape[1]:
            raise UsageError(
                f"There is no attention head {head}: the backbone has {attention.shape[1]}, counted from 0.",
                "Set attention.head, or to null for the mean of all heads.",
            )
        wide = attention.to(torch.promote_types(attention.dtype, torch.float32))
        maps = wide.mean(1) if head is None else wide[:, head]
        h, w = features.values.shape[1:3]
        return [self._propose_one(values.reshape(h, w)) for values in maps]

    def _propose_one(self, attention: Float[Tensor, "h w"]) -> Instances:
        total = attention.sum()
        if float(total) <= 0:
            return to_instances([], [], attention)
        share = attention / total
        labels = label_components((share >= mass_cutoff(share, self.config.mass))[None])[0]
        # Of components of one size, argmax takes the first in reading order.
        largest = labels.flatten().bincount()[1:].argmax() + 1
        mask = labels == largest
        score = float(share[mask].sum()) - float(mask.float().mean())
        return to_instances([mask], [min(max(score, 0.0), 1.0)], attention)


def mass_cutoff(share: Float[Tensor, "h w"], mass: float) -> Float[Tensor, ""]:
    """The largest value such that the patches at or above it hold ``mass`` of the whole, which sums to 1."""
    ascending = share.flatten().sort().values
    below = ascending.cumsum(0) > 1 - mass
    # With mass 1 and rounding no patch may reach the sum; the largest value is then the cutoff.
    below[-1] = True
    return ascending[below.to(torch.uint8).argmax()]
