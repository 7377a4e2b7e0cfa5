"""Multi-crop augmentation, a whole batch at a time, on the device of its input.

Photographs come as squares of one size (:mod:`figureground.data.squares`); each crop is cut, resized, mirrored and
recoloured without a loop over images. Every random number is drawn on the CPU from the generator given, so that a crop
is the same crop on every device.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field, field_validator
from torch import Tensor

from figureground.config import Config

# Tries for a window that lies inside the photograph, before its middle is taken.
_TRIES = 10
# Of Keys' cubic convolution kernel.
_KEYS = -0.5

Batch = Float[Tensor, "B 3 s s"]


class ColourConfig(Config):
    """How the colours of a crop are changed; the defaults are BYOL's."""

    jitter: float = Field(default=0.8, ge=0, le=1, description="Probability that colours are changed (BYOL: 0.8).")
    brightness: float = Field(default=0.4, ge=0, le=1, description="Largest relative change of brightness (BYOL: 0.4).")
    contrast: float = Field(default=0.4, ge=0, le=1, description="Largest relative change of contrast (BYOL: 0.4).")
    saturation: float = Field(default=0.2, ge=0, le=1, description="Largest relative change of saturation (BYOL: 0.2).")
    hue: float = Field(default=0.1, ge=0, le=0.5, description="Largest turn of the hue, in circles (BYOL: 0.1).")
    grey: float = Field(default=0.2, ge=0, le=1, description="Probability that colours are dropped (BYOL: 0.2).")


class CropsConfig(ColourConfig):
    """How views are cut from a photograph and recoloured; the defaults are DINO's."""

    global_size: int = Field(default=224, ge=8, le=1024, description="Side of the two large crops, px (paper: 224).")
    global_scale: tuple[float, float] = Field(
        default=(0.25, 1.0), description="Share of the area that a large crop covers (paper: 0.25 to 1)."
    )
    local_count: int = Field(default=10, ge=0, le=32, description="Small crops a photograph (paper: 10).")
    local_size: int = Field(default=96, ge=8, le=1024, description="Side of the small crops, px (paper: 96).")
    local_scale: tuple[float, float] = Field(
        default=(0.05, 0.25), description="Share of the area that a small crop covers (paper: 0.05 to 0.25)."
    )
    aspect: tuple[float, float] = Field(
        default=(3 / 4, 4 / 3), description="Width over height of a crop before it is made square (BYOL: 3/4 to 4/3)."
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="Probability that a crop is mirrored (BYOL: 0.5).")
    blur: tuple[float, float, float] = Field(
        default=(1.0, 0.1, 0.5),
        description="Probability of a blur: first large crop, second, small ones (paper: 1, 0.1, 0.5).",
    )
    blur_sigma: tuple[float, float] = Field(
        default=(0.1, 2.0), description="Standard deviation of the blur, px of the crop (BYOL: 0.1 to 2)."
    )
    solarise: tuple[float, float, float] = Field(
        default=(0.0, 0.2, 0.0),
        description="Probability that bright values are inverted: first large crop, second, small ones (paper: 0, 0.2, "
        "0).",
    )

    @field_validator("global_scale", "local_scale", "aspect", "blur_sigma")
    @classmethod
    def _ascending(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not 0 < bounds[0] <= bounds[1] < math.inf:
            raise ValueError(f"A range of `crops` is wrong: 0 < low <= high, got {bounds}.")
        return bounds

    @field_validator("global_scale", "local_scale")
    @classmethod
    def _a_share(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[1] > 1:
            raise ValueError(f"A scale of `crops` is a share of the area, at most 1, got {bounds}.")
        return bounds

    @field_validator("blur", "solarise")
    @classmethod
    def _probabilities(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= value <= 1 for value in values):
            raise ValueError(f"Probabilities of `crops` lie in [0, 1], got {values}.")
        return values


def multi_crop(
    pixels: UInt8[Tensor, "B S S 3"],
    aspects: Float[Tensor, "B"],
    config: CropsConfig,
    generator: torch.Generator,
) -> list[Float[Tensor, "B 3 _ _"]]:
    """The views of a batch of photographs, two large ones and then the small ones, RGB in [0, 1].

    Args:
        pixels: Photographs brought to squares; crops are on their device.
        aspects: Width over height of each photograph, on the CPU.
        config: Sizes and strengths.
        generator: Of every draw, on the CPU.

    Reference:
        Caron et al., ICCV 2021, section 3.1, with the augmentations of Grill et al., BYOL, NeurIPS 2020, appendix B.
        Deviates: windows are not rounded to whole pixels; the order of the colour changes is drawn once a view and not
        once a crop; the blur is a true Gaussian.
    """
    views = [(config.global_size, config.global_scale, kind) for kind in (0, 1)]
    views += [(config.local_size, config.local_scale, 2)] * config.local_count
    source = pixels.float() / 255
    crops = []
    for size, scale, kind in views:
        windows = random_windows(aspects, scale, config.aspect, generator)
        mirrored = torch.rand(len(pixels), generator=generator) < config.flip
        crop = resample(source, windows, mirrored, size)
        crop = recolour(crop, config, generator)
        crop = _blur_some(crop, config.blur[kind], config.blur_sigma, generator)
        crops.append(_on(crop, config.solarise[kind], generator, solarise))
    return crops


def random_windows(
    aspects: Float[Tensor, "B"],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> Float[Tensor, "B 4"]:
    """Random windows, xyxy as shares of width and height.

    The area is uniform, the logarithm of the shape too; of ten tries the first that lies inside is taken, else the
    largest window in the middle whose shape is allowed.

    Args:
        aspects: Width over height of each photograph.
        scale: Range of the share of the area.
        aspect: Range of width over height of a window, in pixels.
        generator: Of the draws.
    """
    count = len(aspects)
    area, shape, x, y = torch.rand(4, _TRIES, count, generator=generator)
    area = scale[0] + (scale[1] - scale[0]) * area
    low, high = math.log(aspect[0]), math.log(aspect[1])
    # Relative to the photograph's own shape: a window of aspect 1 is as the photograph.
    shape = torch.exp(low + (high - low) * shape) / aspects
    width, height = (area * shape).sqrt(), (area / shape).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.float().argmax(0, keepdim=True)
    width, height, x, y = (values.gather(0, first)[0] for values in (width, height, x, y))
    middle = aspects.clamp(*aspect) / aspects
    none = ~fits.any(0)
    width = torch.where(none, middle.clamp(max=1), width)
    height = torch.where(none, (1 / middle).clamp(max=1), height)
    left = torch.where(none, 0.5, x) * (1 - width)
    top = torch.where(none, 0.5, y) * (1 - height)
    return torch.stack([left, top, left + width, top + height], 1)


def central_windows(aspects: Float[Tensor, "B"]) -> Float[Tensor, "B 4"]:
    """The largest square, in pixels, in the middle of each photograph, xyxy as shares of width and height."""
    width, height = (1 / aspects).clamp(max=1), aspects.clamp(max=1)
    return torch.stack([1 - width, 1 - height, 1 + width, 1 + height], 1) / 2


def resample(
    images: Float[Tensor, "B S S C"], windows: Float[Tensor, "B 4"], mirrored: Bool[Tensor, "B"], size: int
) -> Float[Tensor, "B C s s"]:
    """Cut a window from each image and resize it to ``size``, bicubic and antialiased; clipped to [0, 1].

    The kernel is stretched where an image gets smaller, as Pillow does, so that nothing aliases at any scale. Each axis
    is one product with a matrix of weights, an image each; mirroring reverses it, and there is nothing to loop over.

    Args:
        images: In [0, 1]; RGB, or any other channels.
        windows: xyxy, as shares of width and height.
        mirrored: Which crops are turned left to right.
        size: Of a crop, px.
    """
    side, channels = images.shape[2:]
    windows = torch.where(mirrored[:, None], windows[:, [2, 1, 0, 3]], windows).to(images.device)
    across = _weights(windows[:, 0], windows[:, 2], side, size)
    down = _weights(windows[:, 1], windows[:, 3], side, size)
    rows = torch.bmm(down, images.flatten(2)).unflatten(2, (side, channels))
    channels_first = rows.permute(0, 3, 1, 2).flatten(1, 2)
    crops = torch.bmm(channels_first, across.transpose(1, 2))
    return crops.unflatten(1, (channels, size)).clamp_(0, 1)


def _weights(start: Float[Tensor, "B"], end: Float[Tensor, "B"], side: int, size: int) -> Float[Tensor, "B size side"]:
    """What each source pixel counts for each target pixel; ``start > end`` reverses an axis."""
    step = ((end - start) * (side / size))[:, None, None]
    targets = torch.arange(size, device=start.device)[None, :, None] + 0.5
    sources = torch.arange(side, device=start.device)[None, None, :] + 0.5
    centres = (start * side)[:, None, None] + targets * step
    weights = _cubic((sources - centres) / step.abs().clamp(min=1))
    return weights / weights.sum(2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, of support 2."""
    x = x.abs()
    near = ((_KEYS + 2) * x - (_KEYS + 3)) * x * x + 1
    far = _KEYS * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def recolour(images: Batch, config: ColourConfig, generator: torch.Generator) -> Batch:
    """Change brightness, contrast, saturation and hue, in a random order, of some of the images; drop colours of some.

    Args:
        images: RGB in [0, 1].
        config: How often and how much.
        generator: Of the draws, on the CPU.
    """
    count = len(images)
    chosen = torch.rand(count, generator=generator) < config.jitter
    draws = 2 * torch.rand(4, count, generator=generator) - 1
    # What is neutral leaves an image as it is: one pass for those that are changed and those that are not.
    draws = torch.where(chosen, draws, 0.0).to(images.device)
    factors = (
        (adjust_brightness, 1 + config.brightness * draws[0]),
        (adjust_contrast, 1 + config.contrast * draws[1]),
        (adjust_saturation, 1 + config.saturation * draws[2]),
        (adjust_hue, config.hue * draws[3]),
    )
    for index in torch.randperm(4, generator=generator).tolist():
        adjust, amount = factors[index]
        images = adjust(images, amount)
    return _on(images, config.grey, generator, lambda some: greyscale(some).repeat(1, 3, 1, 1))


def adjust_brightness(images: Batch, factors: Float[Tensor, "B"]) -> Batch:
    """Multiply each image by its factor."""
    return (images * _per_image(factors)).clamp_(0, 1)


def adjust_contrast(images: Batch, factors: Float[Tensor, "B"]) -> Batch:
    """Scale the distance to each image's mean grey."""
    mean = greyscale(images).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _per_image(factors)).clamp_(0, 1)


def adjust_saturation(images: Batch, factors: Float[Tensor, "B"]) -> Batch:
    """Scale the distance to each pixel's grey."""
    return torch.lerp(greyscale(images), images, _per_image(factors)).clamp_(0, 1)


def adjust_hue(images: Batch, turns: Float[Tensor, "B"]) -> Batch:
    """Turn the hue of each image by its share of the circle; saturation and value (HSV) stay."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    safe = chroma.clamp(min=torch.finfo(chroma.dtype).eps)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turns[:, None, None]
    # A channel falls from the value by the chroma as the hue goes away from its own third of the circle.
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    place = torch.remainder(hue[:, None] + offsets, 6)
    share = torch.minimum(place, 4 - place).clamp_(0, 1)
    return value[:, None] - chroma[:, None] * share


def greyscale(images: Batch) -> Float[Tensor, "B 1 s s"]:
    """Luma of each pixel (ITU-R 601)."""
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def solarise(images: Batch) -> Batch:
    """Invert what is brighter than the middle."""
    return torch.where(images >= 0.5, 1 - images, images)


def blur(images: Batch, sigmas: Float[Tensor, "B"]) -> Batch:
    """Gaussian blur, each image by its own standard deviation in px; beyond the border there is nothing to weigh."""
    places = torch.arange(images.shape[-1], device=images.device)
    distances = (places[:, None] - places).square()
    kernels = torch.exp(-distances / (2 * sigmas[:, None, None].square()))
    kernels = kernels / kernels.sum(2, keepdim=True)
    across = images.flatten(1, 2) @ kernels.transpose(1, 2)
    return kernels[:, None] @ across.unflatten(1, images.shape[1:3])


def _blur_some(images: Batch, probability: float, sigma: tuple[float, float], generator: torch.Generator) -> Batch:
    sigmas = sigma[0] + (sigma[1] - sigma[0]) * torch.rand(len(images), generator=generator)
    return _on(images, probability, generator, blur, sigmas)


def _on(
    images: Batch, probability: float, generator: torch.Generator, change: Callable[..., Batch], *amounts: Tensor
) -> Batch:
    """Change some of the images, each with the probability given; they are chosen on the CPU, without a wait."""
    chosen = (torch.rand(len(images), generator=generator) < probability).nonzero()[:, 0]
    if len(chosen) == 0:
        return images
    given: Sequence[Tensor] = [amount[chosen].to(images.device) for amount in amounts]
    if len(chosen) == len(images):
        return change(images, *given)
    chosen = chosen.to(images.device)
    images[chosen] = change(images[chosen], *given)
    return images


def _per_image(values: Float[Tensor, "B"]) -> Float[Tensor, "B 1 1 1"]:
    return values[:, None, None, None]
