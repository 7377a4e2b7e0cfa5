"""Fully connected CRF with two labels: a coarse mask drawn to the edges of the image."""

import functools
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.refine.inputs import Image, Mask, Masks, image_and_masks
from figureground.refine.permutohedral import PermutohedralLattice
from figureground.refine.sparse import arranged

# Images in one lattice on an accelerator: at 480x480 some 300 MB each while it is built.
_TOGETHER = 8


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
    return DenseCRF(image[None], config)(masks, torch.zeros(len(masks), dtype=torch.int64, device=masks.device))


class DenseCRF:
    """The CRF of images of one size: their lattices are built once, for masks that come one after the other.

    Args:
        images: RGB.
        config: The constants.
    """

    def __init__(self, images: UInt8[Tensor, "B H W 3"], config: DenseCRFConfig = CUTLER) -> None:
        # On a CPU the lattice of one image fits the cache; an accelerator is only busy with several.
        self._together = 1 if images.device.type == "cpu" else _TOGETHER
        self._fields = [MeanField(part, config) for part in images.split(self._together)]

    def __call__(self, masks: Bool[Tensor, "S H W"], owners: Int64[Tensor, " S"]) -> Float32[Tensor, "S H W"]:
        """See :func:`dense_crf_masks`.

        Args:
            masks: Coarse masks of all images.
            owners: The image that each belongs to.
        """
        if len(self._fields) == 1:
            return self._fields[0](masks, owners)
        probability = torch.empty(masks.shape, dtype=torch.float32, device=masks.device)
        for first, field in enumerate(self._fields):
            mine = (owners // self._together == first).nonzero()[:, 0]
            if len(mine):
                probability[mine] = field(masks[mine], owners[mine] % self._together)
        return probability


class MeanField:
    """Mean-field inference in a few images at once, in one lattice where no two images meet; see :class:`DenseCRF`."""

    def __init__(self, images: UInt8[Tensor, "B H W 3"], config: DenseCRFConfig) -> None:
        batch, height, width, _ = images.shape
        self._batch = batch
        self._iterations = config.iterations
        self._smoothness = _smoothness_kernel(height, width, config.gaussian_sxy, images.device)
        self._appearance = _appearance_kernel(images, config)
        self._compats = config.gaussian_compat, config.bilateral_compat

    def __call__(self, masks: Bool[Tensor, "S H W"], owners: Int64[Tensor, " S"]) -> Float32[Tensor, "S H W"]:
        """Foreground probability of each pixel, from each mask by itself."""
        if len(masks) == 0:
            return masks.float()
        seats = _seats(owners)
        rows = int(seats.max()) + 1
        if self._batch == 1:
            unary = arranged(masks.flatten(1)).float()[:, None] * 2 - 1  # log(0.73 / 0.27) is exactly 1
        else:
            unary = torch.full((rows, self._batch, masks[0].numel()), -1.0, device=masks.device)
            unary[seats, owners] = masks.flatten(1).float() * 2 - 1
        with _threads(unary) as pool:
            logits = self._logits(unary, pool)
        return torch.sigmoid(logits[seats, owners] if self._batch > 1 else logits[:, 0]).view(masks.shape)

    def _logits(self, unary: Float32[Tensor, "K B N"], pool: Executor | None) -> Float32[Tensor, "K B N"]:
        logits = unary
        for _ in range(self._iterations):
            difference = torch.tanh(logits / 2)
            # All images have the same positions: one lattice serves them, as further values.
            smooth = self._smoothness(difference.flatten(0, 1), pool).view(unary.shape)
            alike = self._appearance(difference.flatten(1), pool).view(unary.shape)
            logits = unary.add(smooth, alpha=self._compats[0]).add(alike, alpha=self._compats[1])
        return logits


def _seats(owners: Int64[Tensor, " S"]) -> Int64[Tensor, " S"]:
    """The place of each mask among those of its image."""
    same = owners[:, None] == owners
    return same.tril(-1).sum(1)


@contextmanager
def _threads(values: Float32[Tensor, "K B N"]) -> Iterator[Executor | None]:
    """As many threads as torch may use on a CPU, for SciPy's products have one each; none where they would idle."""
    count = min(torch.get_num_threads(), len(values))
    if values.device.type != "cpu" or count < 2:
        yield None
        return
    with ThreadPoolExecutor(count) as pool:
        yield pool


class _NormalisedKernel:
    """A Gaussian kernel normalised symmetrically: ``n_i k_ij n_j`` with ``n = (K 1)^-1/2``."""

    def __init__(self, features: Float32[Tensor, "N d"], images: Int64[Tensor, " N"] | None = None) -> None:
        self._lattice = PermutohedralLattice(features, images)
        # A point shares its corners with itself, so that no sum is zero.
        self._norm = self._lattice.filter(features.new_ones(1, len(features))).rsqrt()

    def __call__(self, values: Float32[Tensor, "M N"], pool: Executor | None = None) -> Float32[Tensor, "M N"]:
        return self._lattice.filter(values * self._norm, pool).mul_(self._norm)


@functools.lru_cache(maxsize=4)
def _smoothness_kernel(height: int, width: int, sxy: float, device: torch.device) -> _NormalisedKernel:
    """Kernel over the position; kept, since the images of a run often have one size (at 480x480, 10 MB)."""
    return _NormalisedKernel(_positions(height, width, device) / sxy)


def _appearance_kernel(images: UInt8[Tensor, "B H W 3"], config: DenseCRFConfig) -> _NormalisedKernel:
    """Kernel over the position and the colour; pixels of different images have none in common."""
    batch, height, width, _ = images.shape
    position = _positions(height, width, images.device) / config.bilateral_sxy
    colour = images.reshape(-1, 3).float() / config.bilateral_srgb
    features = torch.cat([position.repeat(batch, 1), colour], 1)
    number = torch.arange(batch, device=images.device).repeat_interleave(len(position))
    return _NormalisedKernel(features, number if batch > 1 else None)


def _positions(height: int, width: int, device: torch.device) -> Float32[Tensor, "N 2"]:
    """Column and row of each pixel, row by row."""
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    return torch.cartesian_prod(rows, columns).flip(1)
