"""Background by boundary connectivity: a region is background when much of it, for its size, lies on the border."""

import torch
from jaxtyping import Float
from torch import Tensor

from figureground.saliency.colour import patch_lab
from figureground.saliency.geodesic import shortest_paths, step_costs


def robust_background(
    images: Float[Tensor, "B 3 H W"],
    patch_size: int = 16,
    colour_sigma: float = 10.0,
    connectivity_sigma: float = 1.0,
    spatial_sigma: float = 0.25,
    smoothness: float = 0.1,
    min_contrast: float = 2.0,
) -> Float[Tensor, "B h w"]:
    """Probability that each patch is background; a figure that touches the border a little stays a figure.

    Paths between all pairs of patches are measured, so time and memory grow with the square of their number. 600
    patches (320 x 480 pixels at 16) take a few MB and a tenth of a second on one core.

    Args:
        images: RGB in [0, 1].
        patch_size: Side of a patch, in pixels; ``h = ceil(H / patch_size)``.
        colour_sigma: Lab units; how far apart the colours of one region may lie (paper: 10).
        connectivity_sigma: Boundary connectivity at which background is likely (paper: 1).
        spatial_sigma: Reach of the contrast term, as a fraction of the longer side (paper: 0.25).
        smoothness: Weight between neighbours of any colour, which evens out small regions (paper: 0.1).
        min_contrast: Lab units; contrast is divided by the largest of the image or by this, whichever is more, so that
            noise does not become a figure (not in the paper).

    Returns:
        In [0, 1]. A constant image, and one whose patches all touch the border, is 1 everywhere.

    Raises:
        ValueError: If the images are empty, or ``patch_size`` or a sigma is not positive.

    Reference:
        Zhu et al., CVPR 2014, sections 3 (boundary connectivity), 4.1 (background-weighted contrast) and 4.2 (the
        optimisation, solved as one linear system). Deviates: regular patches instead of superpixels, 4 neighbours,
        border patches are not linked to each other.
    """
    if min(colour_sigma, connectivity_sigma, spatial_sigma, min_contrast) <= 0 or smoothness < 0:
        raise ValueError("The sigmas and min_contrast are positive and the smoothness is not negative.")
    lab = patch_lab(images, patch_size)
    h, w = lab.shape[2:]
    background = _background_weight(lab, colour_sigma, connectivity_sigma)
    figure = _weighted_contrast(lab, background, spatial_sigma, min_contrast)
    return 1 - _optimise(lab, background, figure, colour_sigma, smoothness).unflatten(1, (h, w))


def _background_weight(lab: Tensor, colour_sigma: float, connectivity_sigma: float) -> Float[Tensor, "B N"]:
    """1 where a patch's region is spread along the border, 0 where it is not."""
    h, w = lab.shape[2:]
    start = torch.full((h * w, h * w), torch.inf, device=lab.device).fill_diagonal_(0).unflatten(1, (h, w))
    distance = shortest_paths(start.expand(len(lab), -1, -1, -1), *step_costs(lab)).flatten(2)
    same_region = torch.exp(-(distance**2) / (2 * colour_sigma**2))
    border = torch.zeros(h, w, device=lab.device)
    border[[0, -1]] = 1
    border[:, [0, -1]] = 1
    connectivity = (same_region @ border.flatten()) / same_region.sum(dim=2).sqrt()
    return 1 - torch.exp(-(connectivity**2) / (2 * connectivity_sigma**2))


def _weighted_contrast(
    lab: Tensor, background: Tensor, spatial_sigma: float, min_contrast: float
) -> Float[Tensor, "B N"]:
    """Colour difference to the likely background nearby, scaled to at most 1."""
    h, w = lab.shape[2:]
    colour = lab.flatten(2).transpose(1, 2)
    rows, columns = torch.meshgrid(
        torch.arange(h, device=lab.device), torch.arange(w, device=lab.device), indexing="ij"
    )
    place = torch.stack([rows.flatten(), columns.flatten()], dim=1).float() / max(h, w)
    near = torch.exp(-torch.cdist(place, place).square() / (2 * spatial_sigma**2))
    weight = near * background[:, None]
    contrast = (torch.cdist(colour, colour) * weight).sum(dim=2)
    least = min_contrast * weight.sum(dim=2).amax(dim=1, keepdim=True)
    return contrast / torch.maximum(contrast.amax(dim=1, keepdim=True), least)


def _optimise(
    lab: Tensor, background: Tensor, figure: Tensor, colour_sigma: float, smoothness: float
) -> Float[Tensor, "B N"]:
    """Saliency that minimises the sum of the background, the figure and the smoothness terms."""
    batch, _, h, w = lab.shape
    index = torch.arange(h * w, device=lab.device).view(h, w)
    first = torch.cat([index[:, :-1].flatten(), index[:-1].flatten()])
    second = torch.cat([index[:, 1:].flatten(), index[1:].flatten()])
    colour = lab.flatten(2)
    difference = (colour[..., first] - colour[..., second]).square().sum(dim=1)
    weight = (torch.exp(-difference / (2 * colour_sigma**2)) + smoothness).double()
    system = torch.zeros(batch, h * w, h * w, dtype=torch.float64, device=lab.device)
    system[:, first, second] = -weight
    system[:, second, first] = -weight
    degree = -system.sum(dim=2) + background + figure
    system.diagonal(dim1=1, dim2=2).copy_(degree)
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve(figure.double()[..., None], factor)[..., 0].clamp(0, 1).float()
