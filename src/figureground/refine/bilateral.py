"""Fast bilateral solver: a coarse mask made smooth in space and colour at once, by one linear system."""

from collections.abc import Callable

import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.refine.inputs import Image, Mask, Masks, image_and_masks
from figureground.refine.keys import distinct, neighbours, strides
from figureground.refine.sparse import SparseMatrix

# ITU-R BT.601, full range (JPEG), from RGB in 0..255; 128 is added to both chromas.
_YUV_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_BISTOCHASTIZATION_STEPS = 10
_CENTRE = 10  # the centres of five stencils [1, 2, 1]


class BilateralSolverConfig(Config):
    """Constants of the bilateral solver; the defaults are TokenCut's."""

    sigma_spatial: float = Field(default=16, gt=0, description="Grid cell: position, pixels. TokenCut: 16.")
    sigma_luma: float = Field(default=16, gt=0, description="Grid cell: luma, steps of 0..255. TokenCut: 16.")
    sigma_chroma: float = Field(default=8, gt=0, description="Grid cell: chroma, steps of 0..255. TokenCut: 8.")
    lam: float = Field(default=256, ge=0, description="Weight of smoothness against the mask, unitless. TokenCut: 256.")
    A_diag_min: float = Field(
        default=1e-5, gt=0, description="Least diagonal entry in the preconditioner. TokenCut: 1e-5."
    )
    cg_tol: float = Field(
        default=1e-5, ge=0, description="Conjugate gradients stop at this relative residual. TokenCut: 1e-5."
    )
    cg_maxiter: int = Field(default=25, ge=0, description="... or after this many iterations. TokenCut: 25.")
    confidence: float = Field(
        default=0.999, gt=0, le=1, description="Confidence of each pixel of the mask. TokenCut: 0.999."
    )


TOKENCUT = BilateralSolverConfig()


def bilateral_solver(image: Image, mask: Mask, config: BilateralSolverConfig = TOKENCUT) -> Float32[Tensor, "H W"]:
    """Soft foreground of each pixel, from one mask; see :func:`bilateral_solver_masks`."""
    return bilateral_solver_masks(image, mask[None], config)[0]


def bilateral_solver_masks(
    image: Image, masks: Masks, config: BilateralSolverConfig = TOKENCUT
) -> Float32[Tensor, "M H W"]:
    """Soft foreground of each pixel, from each mask by itself; the bilateral grid of the image is built once.

    Args:
        image: RGB.
        masks: Coarse masks; there may be none.
        config: The constants.

    Returns:
        The solution, on the device of the input (arrays count as on the CPU): near 1 inside, near 0 outside; not
        clipped, so that it may leave [0, 1] by the error of the conjugate gradients. An empty mask gives
        0, a full one 1.

    Raises:
        ValueError: If the image or the masks are not of the types named, or the grid is too fine to number its cells.

    Reference:
        Barron and Poole, The fast bilateral solver, ECCV 2016, sections 2 and 3 and the supplement (bistochastization,
        Jacobi preconditioner). Constants: Wang et al., TokenCut, CVPR 2022. Deviates: cells are numbered exactly,
        where the published code hashes coordinates in base 255 and lets larger ones collide.
    """
    image, masks = image_and_masks(image, masks)
    grid = _BilateralGrid(image, config)
    mass, balance = grid.bistochastized()
    data = config.confidence * grid.mass

    def system(y: Float64[Tensor, " V"]) -> Float64[Tensor, " V"]:
        return config.lam * (mass * y - balance * grid.blur(balance * y)) + data * y

    diagonal = config.lam * (mass - balance**2 * _CENTRE) + data
    preconditioner = 1 / diagonal.clamp(min=config.A_diag_min)
    solutions = torch.empty(masks.shape, dtype=torch.float32, device=image.device)
    for solution, mask in zip(solutions, masks, strict=True):
        target = grid.splat(config.confidence * mask.flatten().double())
        y = _conjugate_gradients(system, target, target / data, preconditioner, config.cg_tol, config.cg_maxiter)
        solution.copy_(grid.slice(y).view(mask.shape))
    return solutions


class _BilateralGrid:
    """The occupied cells of an image in position and colour, and the products with them (Barron and Poole, section 2).

    Args:
        image: RGB.
        config: The cell sizes.

    Attributes:
        mass: The number of pixels of each cell.
    """

    def __init__(self, image: UInt8[Tensor, "H W 3"], config: BilateralSolverConfig) -> None:
        cells = _cells(image, config)
        low, high = cells.aminmax(dim=0)
        steps = strides((high - low + 3).tolist())  # a margin of one cell on both sides: no step wraps
        keys, vertex = distinct(((cells - low + 1) * cells.new_tensor(steps)).sum(1))
        ones = torch.ones(len(vertex), 1, dtype=torch.float64, device=image.device)
        self._slice = SparseMatrix.from_rows(vertex[:, None], ones, len(keys))
        self.mass = self.splat(ones[:, 0])

        own = torch.arange(len(keys), dtype=torch.int32, device=image.device)[:, None]
        beside = torch.cat([neighbours(keys, step)[:-1] for step in steps], 1)
        present = beside < len(keys)
        columns = torch.cat([own, torch.where(present, beside, own)], 1)
        weights = torch.cat([torch.full_like(own, _CENTRE), present], 1).double()
        self._blur = SparseMatrix.from_rows(columns, weights, len(keys))

    def splat(self, values: Float64[Tensor, " N"]) -> Float64[Tensor, " V"]:
        """Sum the values of each cell's pixels."""
        return self._slice.rmatvec(values[None])[0]

    def slice(self, values: Float64[Tensor, " V"]) -> Float64[Tensor, " N"]:
        """Read each pixel's cell."""
        return self._slice.matvec(values[None])[0]

    def blur(self, values: Float64[Tensor, " V"]) -> Float64[Tensor, " V"]:
        """The sum over the five axes of the stencils [1, 2, 1]; absent neighbours count nothing."""
        return self._blur.matvec(values[None])[0]

    def bistochastized(self) -> tuple[Float64[Tensor, " V"], Float64[Tensor, " V"]]:
        """Row sums ``m`` and scale ``n`` such that ``diag(n) blur diag(n)`` has rows and columns that sum to ``m``."""
        scale = torch.ones_like(self.mass)
        for _ in range(_BISTOCHASTIZATION_STEPS):
            scale = (scale * self.mass / self.blur(scale)).sqrt()
        return scale * self.blur(scale), scale  # the sums reached, not the mass aimed at: the steps are cut short


def _cells(image: UInt8[Tensor, "H W 3"], config: BilateralSolverConfig) -> Int64[Tensor, "N 5"]:
    """Cell of each pixel in (row, column, luma, two chromas)."""
    height, width, _ = image.shape
    rows = torch.arange(height, device=image.device, dtype=torch.float64)
    columns = torch.arange(width, device=image.device, dtype=torch.float64)
    red, green, blue = image.reshape(-1, 3).double().unbind(1)
    # Fused multiply-adds in this order, as in a matrix product: colours that lie on the border of two cells (greys
    # above all) fall where they fall in the published results. An unfused sum moves a few of them.
    luma, chroma_b, chroma_r = (
        (red * weights[0]).add(green, alpha=weights[1]).add(blue, alpha=weights[2]) for weights in _YUV_FROM_RGB
    )
    place = torch.cartesian_prod(rows, columns) / config.sigma_spatial
    chroma = (torch.stack([chroma_b, chroma_r], 1) + 128) / config.sigma_chroma
    return torch.cat([place, luma[:, None] / config.sigma_luma, chroma], 1).floor().long()


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    target: Float64[Tensor, " V"],
    start: Float64[Tensor, " V"],
    preconditioner: Float64[Tensor, " V"],
    tolerance: float,
    iterations: int,
) -> Float64[Tensor, " V"]:
    """Solve ``product(x) = target`` for a symmetric positive definite product, from ``start``."""
    x = start
    residual = target - product(x)
    enough = tolerance * target.norm()
    direction, energy = torch.zeros_like(x), target.new_ones(())
    for _ in range(iterations):
        if residual.norm() <= enough:
            break
        scaled = preconditioner * residual
        last, energy = energy, residual @ scaled
        direction = scaled + energy / last * direction
        image = product(direction)
        step = energy / (direction @ image)
        x = x + step * direction
        residual = residual - step * image
    return x
