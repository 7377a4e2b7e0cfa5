"""TokenCut: the object of an image is one side of the normalised cut of its patches.

Wang, Shen, Hu, Yuan, Crowley, Vaufreydaz: Self-supervised transformers for unsupervised object discovery using
normalized cut. CVPR 2022. Written from the paper.
"""

from collections.abc import Iterable
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


class TokenCutConfig(Config):
    """How TokenCut cuts."""

    tau: float = Field(default=0.2, ge=-1, le=1, description="Cosine above which two patches are joined (paper: 0.2).")
    eps: float = Field(default=1e-5, gt=0, lt=1, description="Weight of all other pairs (paper: 1e-5).")
    eigenvectors: int = Field(
        default=1, ge=1, le=32, description="Vectors used, one object each (paper: 1; CutLER's ablation: 3)."
    )
    figure: Literal["seed", "corners", "background"] = Field(
        default="seed",
        description="Which side is figure: the one of the largest entry (paper); the one with at most two corners; or, "
        "where the pixels are given, the one less like background (geodesic distance), else as `corners`.",
    )


class TokenCut(Method):
    """One object for each of the first eigenvectors.

    Reference:
        Wang et al., CVPR 2022, section 3. Deviates in both presets: the sign of an eigenvector is fixed (the published
        code takes LAPACK's), and a mask is scored by how clean its cut is. ``default`` deviates further: where the
        pixels are given, a background prior (Wei et al., ECCV 2012) tells figure from ground, else the corners of the
        image do: the entry of largest magnitude lies in the background as often as not.
    """

    PRESETS: ClassVar = {"default": TokenCutConfig(figure="background"), "reference": TokenCutConfig()}
    config: TokenCutConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`."""
        grounds: Iterable[Tensor | None] = [None] * len(features.values)
        if images is not None and self.config.figure == "background":
            grounds = geodesic_background(images, features.patch_size)
        return [self._propose_one(values, ground) for values, ground in zip(features.values, grounds, strict=True)]

    def _propose_one(self, values: Float[Tensor, "h w D"], ground: Float[Tensor, "h w"] | None) -> Instances:
        h, w = values.shape[:2]
        affinity = cosine_affinity(values.reshape(h * w, -1), tau=self.config.tau, eps=self.config.eps)
        _, vectors = smallest_eigenvectors(affinity, self.config.eigenvectors)
        found = [vector for vector in vectors if bool(vector.any())]  # fewer, where there are fewer patches
        masks = [self._figure(vector, (h, w), ground) for vector in found]
        scores = [1 - float(ncut_value(affinity, mask.flatten())) / 2 for mask in masks]
        return to_instances(masks, scores, values[..., 0])

    def _figure(
        self, vector: Float[Tensor, "N"], shape: tuple[int, int], ground: Float[Tensor, "h w"] | None
    ) -> Bool[Tensor, "h w"]:
        # By the sign rule of the solver the entry of largest magnitude is positive: TokenCut's seed, on its own side.
        side = (vector > vector.mean()).reshape(shape)
        if self.config.figure == "seed":
            other_is_figure = False
        elif ground is not None:
            other_is_figure = bool(ground[side].mean() > ground[~side].mean())
        else:
            other_is_figure = int(side[[0, 0, -1, -1], [0, -1, 0, -1]].sum()) > 2
        if other_is_figure:
            side, vector = ~side, -vector
        return component_at(side[None], torch.argmax(vector)[None])[0]
