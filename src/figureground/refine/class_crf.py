"""Fully connected CRF with several labels: the classes of pixels drawn to the edges of the image."""

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from figureground.refine.dense_crf import DenseCRFConfig
from figureground.refine.permutohedral import PermutohedralLattice

# Of a probability, so that its logarithm is finite.
_LEAST = 1e-5


def class_crf(
    image: UInt8[Tensor, "H W 3"], probabilities: Float32[Tensor, "C H W"], config: DenseCRFConfig
) -> Float32[Tensor, "C H W"]:
    """The probability of each class at each pixel once pixels that are near and alike have agreed.

    Args:
        image: RGB.
        probabilities: Of each class; they add up to 1.
        config: The constants.

    Returns:
        Likewise; those given, where there is no iteration.

    Reference:
        Kraehenbuehl and Koltun, NIPS 2011, section 3, with Potts compatibility; kernels are normalised symmetrically
        and the sum includes j = i, as in :func:`~figureground.refine.dense_crf.dense_crf_masks`, which this is for two
        classes.
    """
    classes, height, width = probabilities.shape
    rows = torch.arange(height, device=image.device, dtype=torch.float32)
    columns = torch.arange(width, device=image.device, dtype=torch.float32)
    place = torch.cartesian_prod(rows, columns).flip(1)
    colour = image.reshape(-1, 3).float() / config.bilateral_srgb
    kernels = [
        (config.gaussian_compat, *_normalised(place / config.gaussian_sxy)),
        (config.bilateral_compat, *_normalised(torch.cat([place / config.bilateral_sxy, colour], 1))),
    ]
    unary = probabilities.reshape(classes, -1).clamp(min=_LEAST).log()
    found = unary.softmax(0)
    for _ in range(config.iterations):
        logits = unary
        for compat, lattice, norm in kernels:
            # Potts: what the others say for a class, up to a part that all classes share.
            logits = logits + compat * lattice.filter(found * norm) * norm
        found = logits.softmax(0)
    return found.view(classes, height, width)


def _normalised(features: Float32[Tensor, "N d"]) -> tuple[PermutohedralLattice, Float32[Tensor, "1 N"]]:
    """A lattice, and ``(K 1)^-1/2``."""
    lattice = PermutohedralLattice(features)
    return lattice, lattice.filter(features.new_ones(1, len(features))).rsqrt()
