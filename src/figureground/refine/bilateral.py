"""Fast bilateral solver: a coarse mask made smooth in space and colour at once, by one linear system."""

from collections.abc import Callable

import torch
from jaxtyping import Float32, Float64, Int32, UInt8
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.refine.inputs import Image, Mask, Masks, image_and_masks
from figureground.refine.keys import distinct, neighbours, strides
from figureground.refine.sparse import SparseMatrix

# ITU-R BT.601, full range (JPEG), from RGB in 0..255.
_YUV_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_YUV_OFFSET = (0.0, 128.0, 128.0)
_BISTOCHASTIZATION_STEPS = 10


class BilateralSolverConfig(Config):
    """Constants of the bilateral solver; the defaults are TokenCut's."""

    sigma_spatial: float = Field(16, gt=0, description="Grid cell: position, pixels. TokenCut: 16.")
    sigma_luma: float = Field(16, gt=0, description="Grid cell: luma, steps of 0..255. TokenCut: 16.")
    sigma_chroma: float = Field(8, gt=0, description="Grid cell: chroma, steps of 0..255. TokenCut: 8.")
    lam: float = Field(256, ge=0, description="Weight of smoothness against the mask, unitless. TokenCut: 256.")
    A_diag_min: float = Field(1e-5, gt=0, description="Least diagonal entry in the preconditioner. TokenCut: 1e-5.")
    cg_tol: float = Field(1e-5, ge=0, description="Conjugate gradients stop at this relative residual. TokenCut: 1e-5.")
    cg_maxiter: int = Field(25, ge=0, description="... or after this many iterations. TokenCut: 25.")
    confidence: float = Field(0.999, gt=0, le=1, description="Confidence of each pixel of the mask. TokenCut: 0.999.")


def bilateral_solver(
    image: Image, mask: Mask, config: BilateralSolverConfig = BilateralSolverConfig()
) -> Float32[Tensor, "H W"]:
    """Soft foreground of each pixel, from one mask; see :func:`bilateral_solver_masks`."""
    return bilateral_solver_masks(image, mask[None], config)[0]


def bilateral_solver_masks(
    image: Image, masks: Masks, config: BilateralSolverConfig = BilateralSolverConfig()
) -> Float32[Tensor, "M H W"]:
    """Soft foreground of each pixel, from each mask by itself; the bilateral grid of the image is built once.

    Args:
        image: RGB.
        masks: Coarse masks; there may be none.
        config: The constants.

    Returns:
        The solution, on the device of the input (arrays count as on the CPU): near 1 inside, near 0 outside; not
        clipped, so that it may leave [0, 1] by the error of the conjugate gradients. An empty mask gives 0, a full one 1.

    Raises:
        ValueError: If the image or the masks are not of the types named, or the grid is too fine to number its cells.

    Reference:
        Barron and Poole, The fast bilateral solver, ECCV 2016, sections 2 and 3 and the supplement (bistochastization,
        Jacobi preconditioner). Constants: Wang et al., TokenCut, CVPR 2022. Deviates: cells are numbered exactly,
        where the published code hashes coordinates in base 255 and lets larger ones collide.
    """
    image, masks = image_and_masks(image, masks)
    vertex_of_pixel, vertices, blur = _bilateral_grid(image, config)

    def splat(values: Float64[Tensor, " N"]) -> Float64[Tensor, " V"]:
        return vertex_of_pixel.rmatvec(values[None])[0]

    confidence = torch.full((image.shape[0] * image.shape[1],), config.confidence, dtype=torch.float64).to(image.device)
    mass, balance = _bistochastize(splat(torch.ones_like(confidence)), blur)
    data = splat(confidence)

    def system(y: Float64[Tensor, " V"]) -> Float64[Tensor, " V"]:
        return config.lam * (mass * y - balance * blur(balance * y)) + data * y

    diagonal = config.lam * (mass - balance * balance * 10) + data
    inverse = 1 / diagonal.clamp(min=config.A_diag_min)
    solutions = torch.empty(masks.shape, dtype=torch.float32, device=image.device)
    for solution, mask in zip(solutions, masks, strict=True):
        target = splat(mask.flatten() * confidence)
        y = _conjugate_gradients(system, target, target / data, inverse, config.cg_tol, config.cg_maxiter)
        solution.copy_(vertex_of_pixel.matvec(y[None])[0].view(mask.shape))
    return solutions


def _bilateral_grid(image: UInt8[Tensor, "H W 3"], config: BilateralSolverConfig):
    height, width, _ = image.shape
    rgb = image.reshape(-1, 3).double()
    yuv = rgb @ rgb.new_tensor(_YUV_FROM_RGB).T + rgb.new_tensor(_YUV_OFFSET)
    rows = torch.arange(height, device=image.device, dtype=torch.float64)
    columns = torch.arange(width, device=image.device, dtype=torch.float64)
    sizes = [config.sigma_spatial] * 2 + [config.sigma_luma] + [config.sigma_chroma] * 2
    cells = (torch.cat([torch.cartesian_prod(rows, columns), yuv], 1) / rgb.new_tensor(sizes)).floor().long()
    low, high = cells.aminmax(dim=0)
    steps = strides((high - low + 3).tolist())
    keys, place = distinct(((cells - low + 1) * torch.tensor(steps, device=image.device)).sum(1))
    S = SparseMatrix.from_rows(place[:, None], rgb.new_ones(len(place), 1), len(keys))
    own = torch.arange(len(keys), dtype=torch.int32, device=keys.device)[:, None]
    beside = torch.cat([neighbours(keys, step)[:-1] for step in steps], 1)
    present = beside < len(keys)
    B = SparseMatrix.from_rows(torch.cat([own, torch.where(present, beside, own)], 1), torch.cat([torch.full_like(own, 10), present], 1).double(), len(keys))
    return S, len(keys), lambda y: B.matvec(y[None])[0]

def _bistochastize(mass, blur):
    n = torch.ones_like(mass)
    for _ in range(_BISTOCHASTIZATION_STEPS):
        n = (n * mass / blur(n)).sqrt()
    return n * blur(n), n

def _conjugate_gradients(A, b, x, Minv, tol, maxiter):
    r = b - A(x)
    p = torch.zeros_like(r); rho_old = 1.0
    stop = tol * b.norm()
    for i in range(maxiter):
        if r.norm() <= stop: break
        z = Minv * r
        rho = r @ z
        p = z + (rho / rho_old) * p
        q = A(p)
        a = rho / (p @ q)
        x = x + a * p
        r = r - a * q
        rho_old = rho
    return x
