"""TokenCut: the object of an image is one side of the normalised cut of its patches.

Wang, Shen, Hu, Yuan, Crowley, Vaufreydaz: Self-supervised transformers for unsupervised object discovery using
normalized cut. CVPR 2022. Written from the paper.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.ops.components import component_at
from figureground.proposals.interface import Method, to_instances
from figureground.spectral import cosine_affinity, ncut_value, smallest_eigenvectors
from figureground.structures import Instances, PatchFeatures


class TokenCutConfig(Config):
    """How TokenCut cuts."""

    tau: float = Field(default=0.2, ge=-1, le=1, description="Cosine above which two patches are joined (paper: 0.2).")
    eps: float = Field(default=1e-5, gt=0, lt=1, description="Weight of all other pairs (paper: 1e-5).")
    eigenvectors: int = Field(
        default=1, ge=1, le=32, description="Vectors used, one object each (paper: 1; CutLER's ablation: 3)."
    )
    figure: Literal["seed", "corners"] = Field(
        default="seed",
        description="Which side is figure: the one of the largest entry (paper), or the one with fewer corners.",
    )


class TokenCut(Method):
    """One object for each of the first eigenvectors.

    Reference:
        Wang et al., CVPR 2022, section 3. Deviates in both presets: the sign of an eigenvector is fixed (the published
        code takes LAPACK's), and a mask is scored. ``default`` deviates further: the figure is the side that touches
        fewer image corners, which is what keeps a large background from being taken for the object.
    """

    PRESETS: ClassVar = {"default": TokenCutConfig(figure="corners"), "reference": TokenCutConfig()}

    config: TokenCutConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the pixels are not looked at."""
        return [self._propose_one(values) for values in features.values]

    def _propose_one(self, values: Float[Tensor, "h w D"]) -> Instances:
        h, w = values.shape[:2]
        affinity = cosine_affinity(values.reshape(h * w, -1), tau=self.config.tau, eps=self.config.eps)
        eigenvalues, vectors = smallest_eigenvectors(affinity, self.config.eigenvectors)
        masks, scores = [], []
        for eigenvalue, vector in zip(eigenvalues, vectors, strict=True):
            if not bool(vector.any()):
                continue  # fewer patches than vectors
            mask = self._figure(vector, (h, w))
            masks.append(mask)
            # The eigenvalue bounds the normalised cut from below; both live in [0, 2] and small is a clean cut.
            scores.append(1 - max(float(eigenvalue), ncut_value(affinity, mask.flatten())) / 2)
        return to_instances(masks, scores, values[..., 0])

    def _figure(self, vector: Float[Tensor, "N"], shape: tuple[int, int]) -> Bool[Tensor, "h w"]:
        # By the sign rule of the solver the entry of largest magnitude is positive: TokenCut's seed, on its own side.
        side = (vector > vector.mean()).reshape(shape)
        corners = int(side[[0, 0, -1, -1], [0, -1, 0, -1]].sum())
        if self.config.figure == "corners" and corners > 2:
            side, vector = ~side, -vector
        return component_at(side[None], torch.argmax(vector)[None])[0]
