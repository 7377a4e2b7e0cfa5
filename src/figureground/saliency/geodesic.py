"""Background by geodesic distance: what is reached from the border without crossing a strong edge."""

import torch
from jaxtyping import Float
from torch import Tensor

from figureground.saliency.colour import patch_lab

# Costs are rounded to this fraction of a Lab unit. Sums are then exact in float32 (up to 65536 units), so that the
# relaxation comes to rest, and at the same values in any batch and on any machine.
_QUANTUM = 1 / 256


def geodesic_background(
    images: Float[Tensor, "B 3 H W"], patch_size: int = 8, min_contrast: float = 10.0
) -> Float[Tensor, "B h w"]:
    """Probability that each patch is background: 1 at the border, 0 at the patch farthest from it.

    The distance of a patch is the length of the shortest path to the border of the image, a step costing the difference
    of mean colour; steps smaller than what is usual within smooth regions cost nothing.

    Args:
        images: RGB in [0, 1].
        patch_size: Side of a patch, in pixels; ``h = ceil(H / patch_size)``.
        min_contrast: Lab units; distances are divided by the largest of the image or by this, whichever is more,
            so that noise does not become a figure.

    Returns:
        In [0, 1]. A constant image, and one whose patches all touch the border, is 1 everywhere.

    Raises:
        ValueError: If the images are empty, or ``patch_size`` or ``min_contrast`` is not positive.

    Reference:
        Wei et al., ECCV 2012, sections 3.1 to 3.3 (geodesic saliency, regular patches, weight clipping). Deviates:
        border patches cost nothing (the paper gives each its own one-dimensional saliency), 4 neighbours instead of 8.

    Example:
        >>> image = torch.zeros(1, 3, 40, 48)
        >>> image[:, :, 16:24, 16:32] = 1.0
        >>> geodesic_background(image).int()[0]
        tensor([[1, 1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1, 1],
                [1, 1, 0, 0, 1, 1],
                [1, 1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1, 1]], dtype=torch.int32)
    """
    if min_contrast <= 0:
        raise ValueError(f"min_contrast is positive, got {min_contrast}.")
    right, down = step_costs(patch_lab(images, patch_size))
    start = torch.full((len(images), 1, right.shape[1], down.shape[2]), torch.inf, device=right.device)
    start[..., [0, -1], :] = 0
    start[..., [0, -1]] = 0
    distance = shortest_paths(start, right, down)[:, 0]
    return 1 - distance / distance.amax(dim=(1, 2), keepdim=True).clamp(min=min_contrast)


def geodesic_distance(channels: Float[Tensor, "B C h w"], bottom: float = 0.0) -> Float[Tensor, "B h w"]:
    """Length of the shortest path from each patch to the border of the image, a step costing the change of channels.

    Args:
        channels: What a patch looks like, in Lab units.
        bottom: What it costs to start at the bottom border, as a share of the largest distance to the other three:
            photographed objects stand on the ground and often reach out of the picture there.

    Returns:
        In Lab units; 0 on the left, right and upper border.
    """
    right, down = step_costs(channels)
    start = torch.full((len(channels), 1, *channels.shape[2:]), torch.inf, device=channels.device)
    start[..., 0, :] = 0
    start[..., [0, -1]] = 0
    distance = shortest_paths(start, right, down)
    toll = (bottom * distance.amax(dim=(1, 2, 3)) / _QUANTUM).round() * _QUANTUM
    start[..., -1, :] = torch.minimum(start[..., -1, :], toll[:, None, None])
    return shortest_paths(start, right, down)[:, 0]


def step_costs(
    channels: Float[Tensor, "B C h w"],
) -> tuple[Float[Tensor, "B h w-1"], Float[Tensor, "B h-1 w"]]:
    """Difference between neighbouring patches, zero where it is no more than usual within smooth regions.

    "Usual" is the mean, over the patches of an image, of the difference to the most similar neighbour.

    Returns:
        Cost of a step to the right and of a step down, in the unit of the channels (Lab), multiples of 1 / 256.

    Reference:
        Wei et al., ECCV 2012, section 3.3, "weight clipping".
    """
    right = (channels[..., 1:] - channels[..., :-1]).square().sum(dim=1).sqrt()
    down = (channels[..., 1:, :] - channels[..., :-1, :]).square().sum(dim=1).sqrt()
    nearest = channels.new_full((len(channels), *channels.shape[2:]), torch.inf)
    nearest[..., :-1] = torch.minimum(nearest[..., :-1], right)
    nearest[..., 1:] = torch.minimum(nearest[..., 1:], right)
    nearest[..., :-1, :] = torch.minimum(nearest[..., :-1, :], down)
    nearest[..., 1:, :] = torch.minimum(nearest[..., 1:, :], down)
    usual = nearest.nan_to_num(posinf=0.0).mean(dim=(1, 2))[:, None, None]
    right, down = (torch.where(cost <= usual, 0.0, cost) for cost in (right, down))
    return (right / _QUANTUM).round() * _QUANTUM, (down / _QUANTUM).round() * _QUANTUM


def shortest_paths(
    start: Float[Tensor, "B S h w"], right: Float[Tensor, "B h w-1"], down: Float[Tensor, "B h-1 w"]
) -> Float[Tensor, "B S h w"]:
    """Lengths of the shortest paths on the 4-neighbour grid, for several sets of sources at once.

    Whole rows and columns are relaxed in one step, by a running minimum over the distance less the cost so far; this is
    repeated until nothing changes, which takes about as many rounds as the paths have turns.

    Args:
        start: Length with which a path may start at a patch: 0 at sources, infinite elsewhere.
        right: Cost of a step between a patch and its right neighbour, either way; not negative.
        down: The same, between a patch and the one below.

    Returns:
        Infinite only where no source exists.
    """
    along_row = torch.nn.functional.pad(right.cumsum(dim=2), (1, 0))[:, None]
    along_column = torch.nn.functional.pad(down.cumsum(dim=1), (0, 0, 1, 0))[:, None]
    distance = start
    for _ in range(start.shape[2] * start.shape[3]):
        relaxed = _relax(_relax(distance, along_row, dim=3), along_column, dim=2)
        if torch.equal(relaxed, distance):
            break
        distance = relaxed
    return distance


def _relax(distance: Tensor, so_far: Tensor, dim: int) -> Tensor:
    forward = torch.cummin(distance - so_far, dim=dim).values + so_far
    return torch.cummin((forward + so_far).flip(dim), dim=dim).values.flip(dim) - so_far
