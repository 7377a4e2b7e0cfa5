"""Random flip, scale and colour of a training image and its instances."""

from typing import Annotated

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from figureground.config import Config
from figureground.data.strong import StrongConfig
from figureground.data.targets import Targets, targets_of
from figureground.ops.masks import resize_masks

_Side = Annotated[int, Field(ge=8, le=8192)]


class AugmentConfig(Config):
    """How a training image is varied; the published constants of CutLER's detectors."""

    short_sides: tuple[_Side, ...] = Field(
        default=(240, 320, 480, 640, 672, 704, 736, 768, 800, 1024),
        min_length=1,
        description="Lengths of the short side, px, one drawn for each image (CutLER: 240 to 1024, ten of them).",
    )
    max_side: int = Field(
        default=1333, ge=8, le=16384, description="The long side at most, px; it takes precedence (CutLER: 1333)."
    )
    flip_probability: float = Field(default=0.5, ge=0, le=1, description="Of a horizontal flip (CutLER: 0.5).")
    brightness: float = Field(
        default=0.0, ge=0, le=1, description="Factor drawn from 1 - this to 1 + this; 0: unchanged (CutLER: 0)."
    )
    contrast: float = Field(default=0.0, ge=0, le=1, description="Likewise (CutLER: 0).")
    saturation: float = Field(default=0.0, ge=0, le=1, description="Likewise (CutLER: 0).")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="Turn of at most this share of a circle (CutLER: 0).")
    strong: StrongConfig | None = Field(
        default=None,
        description="Each image is learned from twice in a step: as above, and so varied on top of it, the only one "
        "that objects are pasted into; none: once (CutLER: once; FreeSOLO: twice).",
    )

    def enough(self, size: tuple[int, int]) -> tuple[int, int]:
        """The largest size that an image of ``size`` can be brought to: it need not be decoded larger."""
        return fitted(size, max(self.short_sides), self.max_side)


def fitted(size: tuple[int, int], short_side: int, max_side: int) -> tuple[int, int]:
    """Size with the short side as asked, or shorter where the long side would be more than ``max_side``.

    Args:
        size: ``(height, width)``.
        short_side: Pixels.
        max_side: Pixels.

    Example:
        >>> fitted((480, 640), 800, 1333), fitted((300, 900), 800, 1333)
        ((800, 1067), (444, 1333))
    """
    height, width = size
    factor = min(short_side / min(size), max_side / max(size))
    return max(round(height * factor), 1), max(round(width * factor), 1)


def augment(
    pixels: UInt8[np.ndarray, "H W 3"], targets: Targets, config: AugmentConfig, generator: torch.Generator
) -> tuple[UInt8[Tensor, "3 h w"], Targets]:
    """Vary an image and its instances at random.

    Masks are resized as the image is, antialiased bilinear with the centres of pixels aligned, and kept where they
    cover half a pixel: by nearest neighbour a thin object would vanish by luck of the grid. Boxes are taken from the
    resized masks, and instances that have no pixel left are dropped.

    Args:
        pixels: RGB.
        targets: Its instances.
        config: What is varied, and how far.
        generator: Of the draws; always the same number of them, whatever the configuration.

    Returns:
        The image and its instances; the inputs are left as they are.

    Reference:
        Wang et al., CutLER, CVPR 2023, released configurations. Deviates: masks are resized as above and not by
        nearest neighbour, and an image may have been decoded at less than its own size where that is enough.
    """
    flip, side, *colours = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    size = fitted(pixels.shape[:2], config.short_sides[int(side * len(config.short_sides))], config.max_side)
    # A view, channels last, which is what the fast path for bytes takes.
    image = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)
    image = transforms.resize(image, list(size), antialias=True)
    masks = resize_masks(targets["masks"], size)
    if flip < config.flip_probability:
        image, masks = image.flip(-1), masks.flip(-1)
    image = _coloured(image.contiguous(), config, colours)
    return image, targets_of(masks, targets["labels"], targets["weights"], targets.get("embeddings"))


def _coloured(image: UInt8[Tensor, "3 H W"], config: AugmentConfig, draws: list[float]) -> UInt8[Tensor, "3 H W"]:
    brightness, contrast, saturation, hue = (2 * draw - 1 for draw in draws)
    if config.brightness:
        image = transforms.adjust_brightness(image, 1 + config.brightness * brightness)
    if config.contrast:
        image = transforms.adjust_contrast(image, 1 + config.contrast * contrast)
    if config.saturation:
        image = transforms.adjust_saturation(image, 1 + config.saturation * saturation)
    if config.hue:
        image = transforms.adjust_hue(image, config.hue * hue)
    return image
