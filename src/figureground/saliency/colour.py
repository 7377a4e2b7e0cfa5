"""Colour as the eye spaces it: sRGB to CIELAB, and its mean over patches."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

# Linear sRGB to XYZ, rows divided by the D65 white point, so that white is (1, 1, 1).
_XYZ_OF_RGB = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


def lab_from_rgb(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Convert sRGB in [0, 1] to CIELAB under D65.

    Returns:
        Lightness in [0, 100], then the green-red and blue-yellow axes, roughly in [-110, 110].

    Reference:
        CIE 15:2004, section 8.2.1; IEC 61966-2-1 for the sRGB curve.
    """
    images = images.clamp(0, 1)
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    matrix = linear.new_tensor(_XYZ_OF_RGB)
    x, y, z = torch.einsum("kc,bchw->kbhw", matrix, linear)
    root = [
        torch.where(v > (6 / 29) ** 3, v.clamp(min=1e-8) ** (1 / 3), v / (3 * (6 / 29) ** 2) + 4 / 29)
        for v in (x, y, z)
    ]
    return torch.stack([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])], dim=1)


def patch_lab(images: Float[Tensor, "B 3 H W"], patch_size: int) -> Float[Tensor, "B 3 h w"]:
    """Mean CIELAB colour of each patch; a last row or column narrower than a patch is averaged over what it has.

    Raises:
        ValueError: If the images are empty or ``patch_size`` is not positive.
    """
    if patch_size < 1 or 0 in images.shape:
        raise ValueError(
            f"Saliency needs pixels and a positive patch size, got {tuple(images.shape)} and {patch_size}."
        )
    return functional.avg_pool2d(lab_from_rgb(images.float()), patch_size, ceil_mode=True, count_include_pad=False)
