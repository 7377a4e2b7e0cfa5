"""MaskCut: several objects of an image by repeated normalised cuts.

Wang, Girdhar, Yu, Misra: Cut and learn for unsupervised object detection and instance segmentation. CVPR 2023.
Written from the paper.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.ops.components import component_at
from figureground.ops.masks import mask_iou
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
        grounds: Iterable[Tensor | None] = [None] * len(features.values)
        if images is not None and self.config.figure == "background":
            grounds = geodesic_background(images, features.patch_size)
        rounds = self._published_rounds if self.config.removal == "zero" else self._rounds
        return [rounds(values, ground) for values, ground in zip(features.values, grounds, strict=True)]

    def _published_rounds(self, values: Float[Tensor, "h w D"], ground: Float[Tensor, "h w"] | None) -> Instances:
        h, w, width = values.shape
        config = self.config
        affinity = cosine_affinity(values.reshape(h * w, width), tau=config.tau, eps=config.eps)
        taken = torch.zeros(h * w, dtype=torch.bool, device=values.device)
        previous = taken.reshape(1, h, w)
        masks = []
        for number in range(config.max_masks):
            # What zeroed features come to: a zero vector is similar to nothing, itself included.
            affinity[taken] = config.eps
            affinity[:, taken] = config.eps
            mask, _ = self._cut(affinity, None, (h, w), ground)
            small = float(mask.sum()) <= config.min_area * h * w
            if number > 0 and (small or float(mask_iou(mask[None], previous)) > config.max_overlap):
                mask = torch.zeros_like(mask)
            previous = mask[None]
            masks.append(mask & ~taken.reshape(h, w))
            taken = taken | mask.flatten()
        found = [mask for mask in masks if bool(mask.any())]
        return to_instances(found, [1.0] * len(found), values[..., 0])

    def _rounds(self, values: Float[Tensor, "h w D"], ground: Float[Tensor, "h w"] | None) -> Instances:
        h, w, width = values.shape
        config = self.config
        affinity = cosine_affinity(values.reshape(h * w, width), tau=config.tau, eps=config.eps)
        live = torch.ones(h * w, dtype=torch.bool, device=values.device)
        masks, scores = [], []
        for _ in range(config.max_masks):
            mask, eigenvalue = self._cut(affinity, live, (h, w), ground)
            if eigenvalue >= config.max_ncut or float(mask.sum()) <= config.min_area * h * w:
                break
            masks.append(mask)
            # A clean cut alone ranks no better than chance, since stripes of sky are cut cleanly: it is weighed by how
            # far the mask is from the border, or how little of the border it takes.
            figure = 1 - _border_share(mask) if ground is None else float(1 - ground[mask].mean())
            scores.append(figure * (1 - ncut_value(affinity, mask.flatten(), live) / 2))
            live = live & ~mask.flatten()
        return to_instances(masks, scores, values[..., 0])

    def _cut(
        self,
        affinity: Float[Tensor, "N N"],
        live: Bool[Tensor, "N"] | None,
        shape: tuple[int, int],
        ground: Float[Tensor, "h w"] | None,
    ) -> tuple[Bool[Tensor, "h w"], float]:
        """The figure of one cut and its eigenvalue; an empty figure where there is nothing to cut."""
        eigenvalues, vectors = smallest_eigenvectors(affinity, 1, live)
        vector = vectors[0]
        alive = torch.ones_like(vector, dtype=torch.bool) if live is None else live
        if not bool(vector.any()):
            return torch.zeros(shape, dtype=torch.bool, device=vector.device), 2.0
        side = (vector > vector[alive].mean()) & alive
        if self._is_ground(side, ~side & alive, shape, ground):
            side, vector = ~side & alive, -vector
        seed = torch.argmax(vector.masked_fill(~alive, -torch.inf))
        return component_at(side.reshape(1, *shape), seed[None])[0], float(eigenvalues[0])

    def _is_ground(
        self,
        side: Bool[Tensor, "N"],
        other: Bool[Tensor, "N"],
        shape: tuple[int, int],
        ground: Float[Tensor, "h w"] | None,
    ) -> bool:
        if ground is not None:
            flat = ground.flatten()
            return bool(flat[side].mean() > flat[other].mean())
        return int(side.reshape(shape)[[0, 0, -1, -1], [0, -1, 0, -1]].sum()) >= self.config.corners


def _border_share(mask: Bool[Tensor, "h w"]) -> float:
    """How much of the border of the map a mask takes."""
    border = torch.ones_like(mask)
    border[1:-1, 1:-1] = False
    return float((mask & border).sum() / border.sum())
