"""LOST: the object is what is similar to the patch that is similar to the fewest others.

Siméoni, Puy, Vo, Roburin, Gidaris, Bursuc, Pérez, Marlet, Ponce: Localizing objects with self-supervised transformers
and no labels. BMVC 2021. Written from the paper.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.ops.components import component_at
from figureground.proposals.interface import Method, to_instances
from figureground.structures import Instances, PatchFeatures


class LostConfig(Config):
    """How LOST seeds and expands."""

    k: int = Field(default=100, ge=1, description="Patches of least degree that may join the seed (paper: 100).")


class Lost(Method):
    """One object for each image: a seed, its expansion, and the part of the map around the seed.

    The score is one minus the share of the other patches that the seed is correlated with: LOST rests on objects being
    similar to few patches, so a seed with few relations is a sure one.

    Reference:
        Siméoni et al., BMVC 2021, section 3. Deviates in both presets: patches of the same degree are taken in reading
        order (the published code sorts unstably), the mask is returned and not its box alone, and it is scored.
        Features are not normalised, as published: only the signs of their products count until the seeds are summed.
    """

    PRESETS: ClassVar = {"default": LostConfig(), "reference": LostConfig()}

    config: LostConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the pixels are not looked at."""
        return [self._propose_one(values) for values in features.values]

    def _propose_one(self, values: Float[Tensor, "h w D"]) -> Instances:
        h, w = values.shape[:2]
        correlation = correlations(values)
        degree = degrees(correlation)
        order = degree.sort(stable=True).indices
        seed = int(order[0])
        if float(correlation[seed, seed]) <= 0:
            return to_instances([], [], values[..., 0])  # a zero feature is similar to nothing, itself included
        mask = expand(correlation, seed, order[: self.config.k], (h, w))
        return to_instances([mask], [1 - float(degree[seed]) / max(h * w - 1, 1)], values[..., 0])


def correlations(values: Float[Tensor, "h w D"]) -> Float[Tensor, "N N"]:
    """Dot products of all patches, of features as they are: not normalised, not cut at zero."""
    flat = values.flatten(0, 1).to(torch.promote_types(values.dtype, torch.float32))
    return flat @ flat.mT


def degrees(correlation: Float[Tensor, "N N"]) -> Int[Tensor, "N"]:
    """How many other patches each patch is positively correlated with (section 3.2)."""
    positive = correlation > 0
    return positive.sum(1) - positive.diagonal().long()


def expand(
    correlation: Float[Tensor, "N N"], seed: int, candidates: Int[Tensor, "K"], shape: tuple[int, int]
) -> Bool[Tensor, "h w"]:
    """The mask that grows from a seed (section 3.3).

    Args:
        correlation: Dot products of all patches.
        seed: Flat index of the first seed.
        candidates: The patches of least degree; those that correlate with the seed become seeds too.
        shape: ``(h, w)`` of the map.

    Returns:
        The 4-connected component, with the seed, of the patches that correlate positively with the sum of all seeds;
        empty where the seed itself does not.
    """
    similar = candidates[correlation[seed, candidates] > 0]
    likeness = correlation[similar].sum(0)
    return component_at((likeness > 0).reshape(1, *shape), torch.tensor([seed], device=correlation.device))[0]
