"""FOUND: find the background from one seed patch; objects are what is left, or what a head has learned from that.

Siméoni, Sekkat, Puy, Vobecky, Zablocki, Pérez: Unsupervised object localization: observing the background to discover
objects. CVPR 2023. Written from the paper.
"""

import os
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from figureground.config import Config
from figureground.errors import WeightsError
from figureground.ops.components import label_components
from figureground.proposals.found_head import FeatureKind, load_head
from figureground.proposals.interface import Method, to_instances
from figureground.structures import Instances, PatchFeatures


class FoundConfig(Config):
    """How FOUND tells the background, and what it returns."""

    head: str | None = Field(
        default=None,
        description="head.safetensors of `figureground found-head`: a learned head tells objects, and threshold and "
        "weight_heads do nothing. None: the untrained method.",
    )
    threshold: float = Field(
        default=0.3, ge=-1, le=1, description="Cosine to the seed above which a patch is background (paper: 0.3)."
    )
    weight_heads: bool = Field(
        default=True,
        description="Weigh attention heads by how little of the image they attend to (paper: yes). "
        "Without CLS attention there are no heads to weigh.",
    )
    instances: Literal["multi", "single"] = Field(
        default="multi", description="Every component of the foreground, or the largest alone (paper: both)."
    )
    min_area: float = Field(
        default=0.0, ge=0, lt=1, description="Components up to this share of the patches are dropped (paper: 0)."
    )

    @field_validator("head")
    @classmethod
    def _absolute(cls, head: str | None) -> str | None:
        # A run can then be gone on with from any folder.
        return head if head is None else os.path.abspath(os.path.expanduser(head))


class Found(Method):
    """The components of what does not resemble the patch that is attended to least, or of what a head finds.

    A component's score is how much of an object its patches are on average, times its share of all that is returned: a
    large component is a surer object than a speck as unlike the background. How much of an object a patch is: how far
    it is from the background, (1 - cosine to the seed) / 2; with a head, the head's probability.

    Args:
        config: The configuration in force.

    Raises:
        WeightsError: If the head cannot be read; from ``propose``, if the features are of another shape than its own.

    Reference:
        Siméoni et al., CVPR 2023, section 3.1, and 3.2 for the head. Deviates in both presets: components are instances
        of their own, with scores; of several patches attended to equally little the first in reading order is the seed.
        Without CLS attention (a backbone without that token) the seed is instead the patch whose background would cover
        most of the image's rim: objects are mostly inside, and no patch is more of a background than that. ``default``
        also drops specks. With a head, patches are told apart (probability above 0.5) before the map is brought to the
        size of the image, not after.
    """

    PRESETS: ClassVar = {"default": FoundConfig(min_area=0.01), "reference": FoundConfig()}

    config: FoundConfig

    def __init__(self, config: FoundConfig) -> None:
        super().__init__(config)
        self.head = None if config.head is None else load_head(config.head)

    def check_backbone(self, name: str, features: str, patch_size: int, width: int) -> None:
        """See :class:`figureground.proposals.interface.Method`."""
        if self.head is not None:
            self.head.check(FeatureKind(name, features, patch_size, width))

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the pixels are not looked at."""
        if self.head is not None:
            kind = self.head.kind
            if (features.patch_size, features.values.shape[-1]) != (kind.patch_size, kind.width):
                raise WeightsError(
                    f"The head of found reads features of width {kind.width} and patches of {kind.patch_size} px; "
                    f"these are of width {features.values.shape[-1]} and {features.patch_size} px.",
                    f"It was learned on {kind.features} of {kind.backbone}.",
                )
            logits = self.head(features.values)
            return [self._components(*pair) for pair in zip(logits > 0, logits.sigmoid(), strict=True)]
        attentions = [None] * len(features.values) if features.cls_attention is None else features.cls_attention
        return [
            self._untrained(values, attention) for values, attention in zip(features.values, attentions, strict=True)
        ]

    def _untrained(self, values: Float[Tensor, "h w D"], attention: Float[Tensor, "heads N"] | None) -> Instances:
        similarity = background_similarity(values, attention, self.config.threshold, self.config.weight_heads)
        return self._components(similarity <= self.config.threshold, (1 - similarity) / 2)

    def _components(self, foreground: Bool[Tensor, "h w"], objectness: Float[Tensor, "h w"]) -> Instances:
        labels = label_components(foreground[None])[0]
        areas = labels.flatten().bincount()[1:]
        numbers = torch.nonzero(areas > self.config.min_area * labels.numel()).flatten() + 1
        if self.config.instances == "single" and len(numbers):
            numbers = numbers[areas[numbers - 1].argmax()][None]
        masks = [labels == number for number in numbers]
        total = max(sum(int(mask.sum()) for mask in masks), 1)
        scores = [float(objectness[mask].sum()) / total for mask in masks]
        return to_instances(masks, scores, objectness)


def background_similarity(
    values: Float[Tensor, "h w D"],
    attention: Float[Tensor, "heads N"] | None,
    threshold: float = 0.3,
    weight_heads: bool = True,
) -> Float[Tensor, "h w"]:
    """Cosine of each patch to the background seed.

    Args:
        values: Features; their width is a multiple of the number of heads.
        attention: Of the CLS token to each patch, where there is one.
        threshold: Cosine that makes a background, by which a seed is chosen where there is no attention.
        weight_heads: Multiply the features and the attention of each head by its weight.

    Returns:
        Cosines in [-1, 1]; 1 everywhere where the seed is a zero vector: with no seed nothing stands out.

    Raises:
        ValueError: If the features do not divide among the heads.
    """
    h, w, width = values.shape
    flat = values.reshape(h * w, width).to(torch.promote_types(values.dtype, torch.float32))
    if attention is None:
        unit = functional.normalize(flat, dim=-1)
        seed = _rim_seed(unit, (h, w), threshold)
    else:
        weights = head_weights(attention) if weight_heads else attention.new_ones(len(attention), dtype=flat.dtype)
        if width % len(weights):
            raise ValueError(f"Features of width {width} do not divide among {len(weights)} attention heads.")
        heads = flat.reshape(h * w, len(weights), -1) * weights[:, None].to(flat)
        unit = functional.normalize(heads.flatten(1), dim=-1)
        seed = (attention * weights[:, None]).sum(0).argmin()
    if not bool(unit[seed].any()):
        return unit.new_ones((h, w))
    return (unit @ unit[seed]).clamp(-1, 1).reshape(h, w)


def head_weights(attention: Float[Tensor, "heads N"]) -> Float[Tensor, "heads"]:
    """Weight of each head: the logarithm of how much rarer than all together it attends (section 3.1)."""
    attention = attention.to(torch.promote_types(attention.dtype, torch.float32))
    attended = (attention > attention.mean()).to(attention.dtype).mean(1)
    # A head that attends to nothing says nothing of rarity; the floor keeps its weight finite.
    floor = 1e-10
    return torch.log((attended.sum() + floor) / (attended + floor))


def _rim_seed(unit: Float[Tensor, "N D"], shape: tuple[int, int], threshold: float) -> Tensor:
    rim = torch.ones(shape, dtype=torch.bool, device=unit.device)
    rim[1:-1, 1:-1] = False
    return (unit @ unit[rim.flatten()].mT > threshold).sum(1).argmax()
