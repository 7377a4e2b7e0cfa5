"""What a method must beat to have learned anything: boxes that are the same in every image."""

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.proposals.interface import Method, to_instances
from figureground.structures import Instances, PatchFeatures


class CentredBoxConfig(Config):
    """How large the box is."""

    side: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="Sides of the box, as a share of those of the image (0.7: about half the area).",
    )


class CentredBox(Method):
    """One box in the middle: what the habits of photographers alone give. It looks at nothing."""

    PRESETS: ClassVar = {"default": CentredBoxConfig(), "reference": CentredBoxConfig()}
    BASELINE: ClassVar[bool] = True

    config: CentredBoxConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; neither features nor pixels are looked at."""
        return _same_box(features, self.config.side)


class WholeImageConfig(Config):
    """There is nothing to set."""


class WholeImage(Method):
    """All of the image as one object: what the size of objects alone gives. It looks at nothing."""

    PRESETS: ClassVar = {"default": WholeImageConfig(), "reference": WholeImageConfig()}
    BASELINE: ClassVar[bool] = True

    config: WholeImageConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; neither features nor pixels are looked at."""
        return _same_box(features, 1.0)


def _same_box(features: PatchFeatures, side: float) -> list[Instances]:
    """One centred box for each image, of at least one patch."""
    batch, h, w = features.values.shape[:3]
    mask = torch.zeros(h, w, dtype=torch.bool, device=features.values.device)
    (top, bottom), (left, right) = (_middle(length, side) for length in (h, w))
    mask[top:bottom, left:right] = True
    return [to_instances([mask], [1.0], mask) for _ in range(batch)]


def _middle(length: int, share: float) -> tuple[int, int]:
    """First and past-the-last patch of the middle.

    Example:
        >>> _middle(20, 0.7), _middle(1, 0.1)
        ((3, 17), (0, 1))
    """
    extent = max(1, round(length * share))
    first = (length - extent) // 2
    return first, first + extent
