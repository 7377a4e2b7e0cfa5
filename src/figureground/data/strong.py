"""Strong random colours, blur and erased rectangles; what is in an image stays where it is."""

import math
from typing import Annotated

import torch
from jaxtyping import UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from figureground.config import Config
from figureground.data.crops import ColourConfig

# Tries for a rectangle that lies inside the image, before there is none.
_TRIES = 10
_Share = Annotated[float, Field(ge=0, le=1)]


class EraseConfig(Config):
    """A rectangle of noise."""

    probability: float = Field(ge=0, le=1, description="That there is one.")
    area: tuple[_Share, _Share] = Field(description="Range of its share of the image.")
    aspect: tuple[float, float] = Field(description="Range of its height over its width.")

    @model_validator(mode="after")
    def _ascending(self) -> "EraseConfig":
        if not (0 < self.area[0] <= self.area[1] and 0 < self.aspect[0] <= self.aspect[1]):
            raise ValueError(f"A range of `strong.erase` is wrong: 0 < low <= high, got {self.area}, {self.aspect}.")
        return self


class StrongConfig(ColourConfig):
    """How strongly an image is varied; the defaults are FreeSOLO's, its rectangles those of Unbiased Teacher."""

    saturation: float = Field(
        default=0.4, ge=0, le=1, description="Largest relative change of saturation (FreeSOLO: 0.4)."
    )
    blur: float = Field(default=0.5, ge=0, le=1, description="Probability of a blur (FreeSOLO: 0.5).")
    blur_sigma: tuple[float, float] = Field(
        default=(0.1, 2.0), description="Range of its standard deviation, px (FreeSOLO: 0.1 to 2)."
    )
    erase: tuple[EraseConfig, ...] = Field(
        default=(
            EraseConfig(probability=0.7, area=(0.05, 0.2), aspect=(0.3, 3.3)),
            EraseConfig(probability=0.5, area=(0.02, 0.2), aspect=(0.1, 6)),
            EraseConfig(probability=0.3, area=(0.02, 0.2), aspect=(0.05, 8)),
        ),
        description="Rectangles of noise (FreeSOLO: three, of probabilities 0.7, 0.5 and 0.3).",
    )

    @model_validator(mode="after")
    def _ascending(self) -> "StrongConfig":
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise ValueError(f"`strong.blur_sigma` is wrong: 0 < low <= high, got {self.blur_sigma}.")
        return self


def vary_strongly(
    image: UInt8[Tensor, "3 H W"], config: StrongConfig, generator: torch.Generator
) -> UInt8[Tensor, "3 H W"]:
    """Change colours, in a random order, or drop them; blur; erase rectangles; each by chance.

    Args:
        image: RGB; it is left as it is.
        config: How often, and how much.
        generator: Of the draws, on the CPU.

    Reference:
        Liu et al., Unbiased Teacher, ICLR 2021, appendix (strong augmentation), which FreeSOLO takes over. Deviates:
        the noise is uniform.
    """
    changed, grey, blurred, sigma, *amounts = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
    order = torch.randperm(4, generator=generator).tolist()
    if changed < config.jitter:
        brightness, contrast, saturation, hue = (2 * amount - 1 for amount in amounts)
        changes = (
            (transforms.adjust_brightness, 1 + config.brightness * brightness),
            (transforms.adjust_contrast, 1 + config.contrast * contrast),
            (transforms.adjust_saturation, 1 + config.saturation * saturation),
            (transforms.adjust_hue, config.hue * hue),
        )
        for index in order:
            adjust, amount = changes[index]
            image = adjust(image, amount)
    if grey < config.grey:
        image = transforms.rgb_to_grayscale(image, num_output_channels=3)
    if blurred < config.blur:
        low, high = config.blur_sigma
        image = _blurred(image, low + (high - low) * sigma)
    for rectangle in config.erase:
        image = _erased(image, rectangle, generator)
    return image


def _blurred(image: UInt8[Tensor, "3 H W"], sigma: float) -> UInt8[Tensor, "3 H W"]:
    # Beyond the border an image is mirrored, which takes as many pixels as it has.
    reach = min(math.ceil(3 * sigma), min(image.shape[1:]) - 1)
    return transforms.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)


def _erased(image: UInt8[Tensor, "3 H W"], config: EraseConfig, generator: torch.Generator) -> UInt8[Tensor, "3 H W"]:
    chance, down, right = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    areas, shapes = torch.rand(2, _TRIES, generator=generator, dtype=torch.float64)
    if chance >= config.probability:
        return image
    height, width = image.shape[1:]
    areas = height * width * (config.area[0] + (config.area[1] - config.area[0]) * areas)
    low, high = (math.log(bound) for bound in config.aspect)
    shapes = torch.exp(low + (high - low) * shapes)
    heights, widths = (areas * shapes).sqrt().round().int(), (areas / shapes).sqrt().round().int()
    for own_height, own_width in zip(heights.tolist(), widths.tolist(), strict=True):
        if 0 < own_height < height and 0 < own_width < width:
            y, x = int(down * (height - own_height + 1)), int(right * (width - own_width + 1))
            noise = torch.randint(256, (3, own_height, own_width), generator=generator, dtype=torch.uint8)
            image = image.clone()
            image[:, y : y + own_height, x : x + own_width] = noise
            break
    return image
