"""Smoothing, scaling and thresholding of maps."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def gaussian_blur(maps: Float[Tensor, "B C h w"], sigma: float) -> Float[Tensor, "B C h w"]:
    """Gaussian of ``sigma`` cells, cut off at three sigmas, edges continued; 0 returns the maps as they are."""
    radius = round(3 * sigma)
    if radius == 0:
        return maps
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, -1)
    padded = functional.pad(maps, (radius, radius, radius, radius), mode="replicate")
    across = functional.conv2d(padded, kernel[:, :, None, :], groups=maps.shape[1])
    return functional.conv2d(across, kernel[:, :, :, None], groups=maps.shape[1])


def to_unit_range(maps: Float[Tensor, "B h w"]) -> Float[Tensor, "B h w"]:
    """Stretch each map to [0, 1]; a constant one becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def otsu_threshold(maps: Float[Tensor, "B h w"], bins: int = 256) -> Float[Tensor, "B"]:
    """The value that splits each map of values in [0, 1] into two classes of least variance.

    Reference:
        Otsu, A threshold selection method from gray-level histograms, 1979.
    """
    index = (maps.flatten(1) * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(len(maps), bins, device=maps.device, dtype=torch.float64)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    centres = (torch.arange(bins, device=maps.device, dtype=torch.float64) + 0.5) / bins
    below, first = counts.cumsum(1), (counts * centres).cumsum(1)
    total, moment = below[:, -1:], first[:, -1:]
    between = (moment * below - total * first).square() / (below * (total - below)).clamp(min=1e-12)
    return centres[between[:, :-1].argmax(1)].to(maps.dtype)
