"""Fit images to what a backbone takes."""

import functools
import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

# Rows of a shrunk image that are made at once.
_STRIP = 64


def fit_size(size: tuple[int, int], side: int, patch_size: int) -> tuple[int, int]:
    """Size of about ``side * side`` pixels with the aspect ratio kept, in whole patches.

    The area and not the short side is fixed: the number of patches, and with it time and memory, is then the same for
    every image, a panorama included.

    Args:
        size: ``(height, width)`` of the image.
        side: Side, in pixels, of the square with the same area.
        patch_size: Side of a patch, in pixels.

    Example:
        >>> fit_size((480, 640), 480, 8)
        (416, 552)
        >>> fit_size((1, 5000), 480, 8)
        (8, 28800)
    """
    height, width = size
    scale = side / math.sqrt(height * width)
    most = side * side // patch_size
    return _in_patches(height * scale, patch_size, most), _in_patches(width * scale, patch_size, most)


def resize_image(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resize by Lanczos resampling to ``(height, width)``."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS, reducing_gap=2.0))


def shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The means of blocks, at least twice as large as ``(height, width)``: the first step of resizing.

    A fraction of the bytes of an image four times as large or more; as by Pillow's ``reducing_gap=2``, but that a last
    block that is not full counts as one.
    """
    across, down = image.width // (2 * size[1]) or 1, image.height // (2 * size[0]) or 1
    if across == down == 1:
        return image
    shrunk = Image.new(image.mode, (-(-image.width // across), -(-image.height // down)))
    # In strips: with transparency Pillow first makes a copy of all it shrinks.
    for top in range(0, image.height, _STRIP * down):
        strip = image.crop((0, top, image.width, min(top + _STRIP * down, image.height)))
        shrunk.paste(strip.reduce((across, down)), (0, top // down))
    shrunk.info = image.info
    return shrunk


def resize_on_device(image: UInt8[Tensor, "H W 3"], size: tuple[int, int]) -> UInt8[Tensor, "h w 3"]:
    """What :func:`resize_image` does, on any device: the same values but for one step of 255 here and there.

    Where the filter overshoots the range the order of the axes shows too, which some versions of Pillow choose by the
    size; here rows come first. An image four times as large as ``size`` or more is better shrunk first
    (:func:`shrink`).
    """
    values = image.float()
    for axis, product in ((1, "hwc,ow->hoc"), (0, "hwc,oh->owc")):
        if image.shape[axis] != size[axis]:
            weights = _lanczos_weights(image.shape[axis], size[axis], image.device)
            values = torch.einsum(product, values, weights).round().clamp(0, 255)
    return values.to(torch.uint8)


def to_tensor(pixels: UInt8[np.ndarray, "H W 3"], device: torch.device | str = "cpu") -> Float[Tensor, "1 3 H W"]:
    """RGB in [0, 1], as a batch of one."""
    return to_unit_range(torch.from_numpy(np.array(pixels)).to(device)[None])


def to_unit_range(images: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """RGB in [0, 1], channels first."""
    return images.permute(0, 3, 1, 2).float() / 255


@functools.lru_cache(maxsize=64)
def _lanczos_weights(length: int, wanted: int, device: torch.device) -> Float[Tensor, "{wanted} {length}"]:
    """How much each pixel of a row counts in each pixel of the resized row; the filter widens where it shrinks."""
    scale = length / wanted
    centres = (torch.arange(wanted, dtype=torch.float64) + 0.5) * scale
    apart = (torch.arange(length, dtype=torch.float64) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = torch.where(apart.abs() < 3, torch.sinc(apart) * torch.sinc(apart / 3), 0.0)
    return (weights / weights.sum(1, keepdim=True)).float().to(device)


def _in_patches(length: float, patch_size: int, most: int) -> int:
    patches = round(length / patch_size)
    return patch_size * min(max(patches, 1), most // patch_size)
