"""Fit images to what a backbone takes."""

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


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


def to_tensor(pixels: UInt8[np.ndarray, "H W 3"], device: torch.device | str = "cpu") -> Float[Tensor, "1 3 H W"]:
    """RGB in [0, 1], as a batch of one."""
    return torch.from_numpy(np.array(pixels)).to(device).permute(2, 0, 1)[None].float() / 255


def _in_patches(length: float, patch_size: int, most: int) -> int:
    patches = round(length / patch_size)
    return patch_size * min(max(patches, 1), most // patch_size)
