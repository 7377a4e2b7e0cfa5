"""What a small backbone and its head, both learned by `figureground distil`, take for figure."""

import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from figureground import backbones
from figureground.backbones import own
from figureground.errors import WeightsError
from figureground.proposals.found_head import FeatureKind, load_head

HEAD = "head.safetensors"
# Area that a picture is brought to, as the side of a square in px: measured, see docs/embedded.md.
_SIDE = 256


class LearnedFigure(nn.Module):
    """How much each patch is figure, by a ViT and one linear layer on its tokens.

    Args:
        source: ``embedded``, which comes with the package, or the run of a `figureground distil`.

    Raises:
        WeightsError: If there is no such run, its files are damaged or do not belong together.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        folder = own.EMBEDDED if source == "embedded" else Path(os.path.expanduser(source))
        head = folder / HEAD
        if not (folder / own.FILE).is_file() or not head.is_file():
            raise WeightsError(
                f"{folder} holds no backbone with a head.", "Name the run of a `figureground distil`, or `embedded`."
            )
        name = source if source == "embedded" else str(folder)
        self.backbone: Any = backbones.load(name, features="tokens")
        self.head = load_head(head)
        self.head.check(FeatureKind(self.backbone.name, "tokens", self.backbone.patch_size, self.backbone.width))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w"]:
        """Look at images of any size.

        Args:
            images: RGB in [0, 1].

        Returns:
            The probability that a patch is figure; the map covers the images, with patches of its own.
        """
        self.to(images.device)
        height, width = images.shape[2:]
        scale = _SIDE / (height * width) ** 0.5 / self.backbone.patch_size
        size = [max(1, round(side * scale)) * self.backbone.patch_size for side in (height, width)]
        looked = functional.interpolate(images, size=size, mode="bilinear", antialias=True)
        return torch.sigmoid(self.head(self.backbone(looked.clamp(0, 1)).values))
