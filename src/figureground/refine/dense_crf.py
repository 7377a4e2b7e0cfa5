"""Fully connected CRF with two labels: a coarse mask drawn to the edges of the image."""

import functools

import torch
from jaxtyping import Bool, Float32, UInt8
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.refine.inputs import Image, Mask, Masks, image_and_masks
from figureground.refine.permutohedral import PermutohedralLattice
from figureground.refine.sparse import arranged


class DenseCRFConfig(Config):
    """Constants of the dense CRF; the defaults are CutLER's."""

    iterations: int = Field(default=10, ge=0, description="Mean-field iterations. CutLER: 10.")
    gaussian_sxy: float = Field(
        default=3, gt=0, description="Smoothness kernel: deviation of the position, pixels. CutLER: 3."
    )
    gaussian_compat: float = Field(default=7, ge=0, description="Smoothness kernel: Potts weight, unitless. CutLER: 7.")
    bilateral_sxy: float = Field(
        default=50, gt=0, description="Appearance kernel: deviation of the position, pixels. CutLER: 50."
    )
    bilateral_srgb: float = Field(
        default=5, gt=0, description="Appearance kernel: deviation of the colour, steps of 0..255. CutLER: 5."
    )
    bilateral_compat: float = Field(
        default=10, ge=0, description="Appearance kernel: Potts weight, unitless. CutLER: 10."
    )


CUTLER = DenseCRFConfig()


def dense_crf(image: Image, mask: Mask, config: DenseCRFConfig = CUTLER) -> Float32[Tensor, "H W"]:
    """Foreground probability of each pixel, from one mask; see :func:`dense_crf_masks`.

    Example:
        >>> image = torch.full((8, 8, 3), 20, dtype=torch.uint8)
        >>> image[:, 4:] = 220
        >>> mask = torch.zeros(8, 8, dtype=torch.bool)
        >>> mask[:, 3:] = True  # one column too wide
        >>> (dense_crf(image, mask) > 0.5)[0].int().tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    return dense_crf_masks(image, mask[None], config)[0]


def dense_crf_masks(image: Image, masks: Masks, config: DenseCRFConfig = CUTLER) -> Float32[Tensor, "M H W"]:
    """Foreground probability of each pixel, from each mask by itself; the lattices of the image are built once.

    Args:
        image: RGB.
        masks: Coarse masks, each a segmentation of its own into foreground and background; there may be none.
        config: The constants.

    Returns:
        Probabilities in [0, 1], on the device of the input (arrays count as on the CPU). The energy knows no area and
        no border: an empty mask stays empty, a full mask full.

    Raises:
        ValueError: If the image or the masks are not of the types named.

    Reference:
        Kraehenbuehl and Koltun, Efficient inference in fully connected CRFs with Gaussian edge potentials, NIPS 2011,
        section 3; unaries as in CutLER: the softmax of the 0/1 mask taken as logits (0.27 / 0.73, not 0 / 1).
        As in the authors' code, kernels are normalised symmetrically, ``n_i k_ij n_j`` with ``n = (K 1)^-1/2``, and
        the sum includes j = i. Deviates in form only: with two labels the mean field is one logit a pixel, and the
        Potts messages of both labels are one filtering of ``q_1 - q_0 = tanh(logit / 2)``.
    """
    image, masks = image_and_masks(image, masks)
    return DenseCRF(image, config)(masks)


class DenseCRF:
    """The CRF of one image: its lattices are built once, for masks that come one after the other.

    Args:
        image: RGB.
        config: The constants.
    """

    def __init__(self, image: UInt8[Tensor, "H W 3"], config: DenseCRFConfig = CUTLER) -> None:
        height, width = image.shape[:2]
        self._iterations = config.iterations
        self._kernels = [
            (config.gaussian_compat, _smoothness_kernel(height, width, config.gaussian_sxy, image.device)),
            (config.bilateral_compat, _appearance_kernel(image, config)),
        ]

    def __call__(self, masks: Bool[Tensor, "M H W"]) -> Float32[Tensor, "M H W"]:
        """See :func:`dense_crf_masks`."""
        unary = arranged(masks.flatten(1)).float() * 2 - 1  # log(0.73 / 0.27) is exactly 1
        logits = unary
        for _ in range(self._iterations):
            difference = torch.tanh(logits / 2)
            logits = unary
            for compat, kernel in self._kernels:
                logits = logits.add(kernel(difference), alpha=compat)
        return torch.sigmoid(logits).view(masks.shape)


class _NormalisedKernel:
    """A Gaussian kernel normalised symmetrically: ``n_i k_ij n_j`` with ``n = (K 1)^-1/2``."""

    def __init__(self, features: Float32[Tensor, "N d"]) -> None:
        self._lattice = PermutohedralLattice(features)
        # A point shares its corners with itself, so that no sum is zero.
        self._norm = self._lattice.filter(features.new_ones(1, len(features))).rsqrt()

    def __call__(self, values: Float32[Tensor, "M N"]) -> Float32[Tensor, "M N"]:
        return self._lattice.filter(values * self._norm).mul_(self._norm)


@functools.lru_cache(maxsize=2)
def _smoothness_kernel(height: int, width: int, sxy: float, device: torch.device) -> _NormalisedKernel:
    """Kernel over the position; kept, since the images of a run often have one size (at 480x480, 10 MB)."""
    return _NormalisedKernel(_positions(height, width, device) / sxy)


def _appearance_kernel(image: UInt8[Tensor, "H W 3"], config: DenseCRFConfig) -> _NormalisedKernel:
    """Kernel over the position and the colour."""
    height, width = image.shape[:2]
    position = _positions(height, width, image.device) / config.bilateral_sxy
    colour = image.reshape(-1, 3).float() / config.bilateral_srgb
    return _NormalisedKernel(torch.cat([position, colour], 1))


def _positions(height: int, width: int, device: torch.device) -> Float32[Tensor, "N 2"]:
    """Column and row of each pixel, row by row."""
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    return torch.cartesian_prod(rows, columns).flip(1)
