"""MaskCut: several objects of an image by repeated normalised cuts.

Wang, Girdhar, Yu, Misra: Cut and learn for unsupervised object detection and instance segmentation. CVPR 2023.
Written from the paper.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.ops.components import component_at
from figureground.proposals.interface import Method, to_instances
from figureground.saliency.geodesic import geodesic_background
from figureground.spectral import cosine_affinity, ncut_value, smallest_eigenvectors
from figureground.structures import Instances, PatchFeatures


class MaskCutConfig(Config):
    """How MaskCut cuts, and when it stops."""

    tau: float = Field(
        default=0.15, ge=-1, le=1, description="Cosine above which two patches are joined (paper: 0.15)."
    )
    eps: float = Field(default=1e-5, gt=0, lt=1, description="Weight of all other pairs (paper: 1e-5).")
    max_masks: int = Field(default=3, ge=1, le=100, description="Rounds, one object each at most (paper: 3).")
    min_area: float = Field(
        default=0.01, ge=0, lt=1, description="Smallest object, as a share of the patches (paper: 0.01)."
    )
    corners: int = Field(
        default=3,
        ge=1,
        le=5,
        description="Image corners from which on a side is background (published code: 3; 5 never).",
    )
    figure: Literal["corners", "background"] = Field(
        default="corners",
        description="Which side is figure: the one with fewer than `corners` corners (paper), or, where the pixels are "
        "given, the one less like background (geodesic distance).",
    )
    removal: Literal["nodes", "zero"] = Field(
        default="zero",
        description="What happens to a found object: its patches leave the graph, or (published) their features are "
        "zeroed, after which the same region can be found again.",
    )
    max_overlap: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="With `removal=zero`: IoU with the mask before, above which a mask is rejected (0.5).",
    )
    max_ncut: float = Field(
        default=2.0,
        gt=0,
        le=2,
        description="With `removal=nodes`: second eigenvalue from which on the rest is one piece: the end; 2 never.",
    )


class MaskCut(Method):
    """Cut, keep the figure, take it out, cut again.

    Reference:
        Wang et al., CVPR 2023, section 3.2. Both presets deviate from the published code in fixing the sign of an
        eigenvector (the code takes LAPACK's) and in taking maps that are not square. ``reference`` otherwise does what
        the code does, its re-finding of removed regions included; all its scores are 1, in the order of finding.
        ``default`` deviates further: found patches leave the graph, so that nothing is found twice and masks never
        overlap; the rounds end with the first cut that is too small; where the pixels are given, a background prior
        (Wei et al., ECCV 2012) tells figure from ground instead of the corners; masks are scored.
    """

    PRESETS: ClassVar = {
        "default": MaskCutConfig(removal="nodes", figure="background"),
        "reference": MaskCutConfig(),
    }

    config: MaskCutConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`."""
        values = features.values
        ground = None
        if images is not None and self.config.figure == "background":
            ground = geodesic_background(images, features.patch_size)
        rounds = self._published_rounds if self.config.removal == "zero" else self._rounds
        # A CPU takes one image after the other: its matrix is read from the cache, and the memory does not grow.
        together = 1 if values.device.type == "cpu" else len(values)
        found: list[Instances] = []
        for first in range(0, len(values), together):
            part = slice(first, first + together)
            found += rounds(values[part], None if ground is None else ground[part])
        return found

    def _published_rounds(
        self, values: Float[Tensor, "B h w D"], ground: Float[Tensor, "B h w"] | None
    ) -> list[Instances]:
        batch, h, w, _ = values.shape
        config = self.config
        affinity = cosine_affinity(values.flatten(1, 2), tau=config.tau, eps=config.eps)
        taken = torch.zeros((batch, h * w), dtype=torch.bool, device=values.device)
        previous = taken
        masks = []
        for number in range(config.max_masks):
            # What zeroed features come to: a zero vector is similar to nothing, itself included.
            affinity.masked_fill_(taken[:, :, None], config.eps).masked_fill_(taken[:, None], config.eps)
            mask, _ = self._cut(affinity, None, (h, w), ground)
            if number > 0:
                again = (mask & previous).sum(1) > config.max_overlap * (mask | previous).sum(1).double()
                mask = mask & (self._is_large(mask) & ~again)[:, None]
            previous = mask
            masks.append(mask & ~taken)
            taken = taken | mask
        stacked = torch.stack(masks, 1).unflatten(2, (h, w))
        return _to_instances(stacked, torch.ones(stacked.shape[:2], device=values.device))

    def _rounds(self, values: Float[Tensor, "B h w D"], ground: Float[Tensor, "B h w"] | None) -> list[Instances]:
        batch, h, w, _ = values.shape
        config = self.config
        affinity = cosine_affinity(values.flatten(1, 2), tau=config.tau, eps=config.eps)
        live = torch.ones((batch, h * w), dtype=torch.bool, device=values.device)
        going = live[:, 0]
        masks, scores = [], []
        for _ in range(config.max_masks):
            mask, eigenvalue = self._cut(affinity, live & going[:, None], (h, w), ground)
            going = going & (eigenvalue < config.max_ncut) & self._is_large(mask)
            if not bool(going.any()):
                break
            mask = mask & going[:, None]
            masks.append(mask)
            # A clean cut alone ranks no better than chance, since stripes of sky are cut cleanly: it is weighed by how
            # far the mask is from the border, or how little of the border it takes.
            against = _border(h, w, mask) if ground is None else ground.flatten(1)
            over = against.sum(1) if ground is None else mask.sum(1)
            figure = 1 - (against * mask).sum(1) / over.clamp(min=1)
            scores.append(figure * (1 - ncut_value(affinity, mask, live) / 2))
            live = live & ~mask
        if not masks:
            return [to_instances([], [], values[..., 0]) for _ in range(batch)]
        return _to_instances(torch.stack(masks, 1).unflatten(2, (h, w)), torch.stack(scores, 1))

    def _cut(
        self,
        affinity: Float[Tensor, "B N N"],
        live: Bool[Tensor, "B N"] | None,
        shape: tuple[int, int],
        ground: Float[Tensor, "B h w"] | None,
    ) -> tuple[Bool[Tensor, "B N"], Float[Tensor, "B"]]:
        """The figure of one cut of each image and its eigenvalue; an empty figure where there is nothing to cut."""
        eigenvalues, vectors = smallest_eigenvectors(affinity, 1, live)
        vector = vectors[:, 0]
        alive = torch.ones_like(vector, dtype=torch.bool) if live is None else live
        mean = vector.sum(1) / alive.sum(1).clamp(min=1)
        side = (vector > mean[:, None]) & alive
        other = ~side & alive
        if ground is None:
            corners = side.unflatten(1, shape)[:, [0, 0, -1, -1], [0, -1, 0, -1]].sum(1)
            is_ground = corners >= self.config.corners
        else:
            flat = ground.flatten(1)
            likeness = [(flat * part).sum(1) / part.sum(1).clamp(min=1) for part in (side, other)]
            is_ground = likeness[0] > likeness[1]
        side = torch.where(is_ground[:, None], other, side)
        vector = torch.where(is_ground[:, None], -vector, vector)
        seed = vector.masked_fill(~alive, -torch.inf).argmax(1)
        figure = component_at(side.unflatten(1, shape), seed).flatten(1)
        return figure & vector.any(1, keepdim=True), eigenvalues[:, 0]

    def _is_large(self, masks: Bool[Tensor, "B N"]) -> Bool[Tensor, "B"]:
        return masks.sum(1).double() > self.config.min_area * masks.shape[1]


def _to_instances(masks: Bool[Tensor, "B M h w"], scores: Float[Tensor, "B M"]) -> list[Instances]:
    """Instances of each image from those of its masks that are not empty."""
    filled = masks.flatten(2).any(2).tolist()
    return [
        to_instances(own[keep], own_scores[keep].tolist(), own[0])
        for own, own_scores, keep in zip(masks, scores, filled, strict=True)
    ]


def _border(h: int, w: int, like: Bool[Tensor, "B N"]) -> Bool[Tensor, "1 N"]:
    """The outermost patches of a map."""
    border = torch.ones((h, w), dtype=torch.bool, device=like.device)
    border[1:-1, 1:-1] = False
    return border.reshape(1, -1)
