"""What the refiners accept: an image and its masks, as tensors on any device or as arrays."""

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

Image = UInt8[Tensor, "H W 3"] | UInt8[np.ndarray, "H W 3"]
Mask = Bool[Tensor, "H W"] | Bool[np.ndarray, "H W"]
Masks = Bool[Tensor, "M H W"] | Bool[np.ndarray, "M H W"]


def image_and_masks(image: Image, masks: Masks) -> tuple[UInt8[Tensor, "H W 3"], Bool[Tensor, "M H W"]]:
    """Return both as tensors; arrays become tensors on the CPU.

    Raises:
        ValueError: If a shape, type or device is not what the annotation says, or the image has no pixel.
    """
    image, masks = _tensor(image), _tensor(masks)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.numel() == 0:
        raise ValueError(f"An image is uint8 (H, W, 3), at least 1x1; got {image.dtype} {tuple(image.shape)}.")
    if masks.dtype != torch.bool or masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        height, width = image.shape[:2]
        raise ValueError(
            f"Masks of this image are bool (M, {height}, {width}); got {masks.dtype} {tuple(masks.shape)}."
        )
    if image.device != masks.device:
        raise ValueError(f"The image is on {image.device}, its masks on {masks.device}.")
    return image, masks


def _tensor(array: Tensor | np.ndarray) -> Tensor:
    # The copy spares torch read-only arrays and negative strides, which it warns of or refuses.
    return array if isinstance(array, Tensor) else torch.from_numpy(np.array(array, order="C"))
