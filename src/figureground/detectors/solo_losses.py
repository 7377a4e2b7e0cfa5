"""The losses of SOLOv2, and those of FreeSOLO, which ask less of a mask than that it be right everywhere.

Wang, Yu, De Mello, Kautz, Anandkumar, Shen, Alvarez: FreeSOLO: Learning to segment objects without annotations.
CVPR 2022, section 3.3; Tian, Shen, Wang, Chen: BoxInst: High-performance instance segmentation with box annotations.
CVPR 2021, section 3. Written from the papers, with the constants of FreeSOLO's released configurations.
"""

import itertools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

# Steps to the eight places around one: up-left, up, up-right, left, right, down-left, down, down-right.
_AROUND = tuple((dy, dx) for dy, dx in itertools.product((-1, 0, 1), repeat=2) if (dy, dx) != (0, 0))


def dice_loss(predicted: Float[Tensor, "R L"], targets: Float[Tensor, "R L"]) -> Float[Tensor, "R"]:
    """One minus twice the product over the sum of the squares, of each row.

    Reference:
        Milletari et al., V-Net, 3DV 2016, as SOLO has it. Deviates: 1e-5 is added to the sum, as the published code.
    """
    product = (predicted * targets).sum(1)
    return 1 - 2 * product / (predicted.square().sum(1) + targets.square().sum(1) + 1e-5)


def max_projection_loss(predicted: Float[Tensor, "R h w"], targets: Float[Tensor, "R h w"]) -> Float[Tensor, "R"]:
    """Dice of the highest values of each column, and of each row: whether a mask reaches as far as it should.

    Reference:
        Wang et al., FreeSOLO, CVPR 2022, section 3.3; Tian et al., BoxInst, CVPR 2021, section 3.2.
    """
    return sum((dice_loss(predicted.amax(axis), targets.amax(axis)) for axis in (1, 2)), predicted.new_zeros(()))


def average_projection_loss(predicted: Float[Tensor, "R h w"], targets: Float[Tensor, "R h w"]) -> Float[Tensor, "R"]:
    """Dice of the mean of each column, and of each row: whether a mask has as much as it should in each.

    Reference:
        Wang et al., FreeSOLO, CVPR 2022, section 3.3.
    """
    return sum((dice_loss(predicted.mean(axis), targets.mean(axis)) for axis in (1, 2)), predicted.new_zeros(()))


@torch.no_grad()
def colour_affinity(
    lab: Float[Tensor, "3 h w"], valid: Bool[Tensor, "h w"] | None = None, dilation: int = 2
) -> Float[Tensor, "8 h w"]:
    """How alike in colour each place and the eight around it are: exp(-distance / 2).

    Args:
        lab: CIELAB.
        valid: Places that count; none: all.
        dilation: How far away the eight are (BoxInst: 2).

    Returns:
        In reading order of the eight; 0 for a place out of the map, and where one of the two does not count.

    Reference:
        Tian et al., BoxInst, CVPR 2021, section 3.3. Deviates: a place does not count towards its neighbours either.
    """
    if valid is None:
        valid = torch.ones_like(lab[0], dtype=torch.bool)
    height, width = valid.shape
    padding = (dilation,) * 4
    colours, known = functional.pad(lab, padding), functional.pad(valid, padding)
    affinity = []
    for dy, dx in _AROUND:
        there = (
            slice((1 + dy) * dilation, (1 + dy) * dilation + height),
            slice((1 + dx) * dilation, (1 + dx) * dilation + width),
        )
        distance = (colours[:, there[0], there[1]] - lab).norm(dim=0)
        affinity.append(torch.exp(-distance / 2) * (known[there] & valid))
    return torch.stack(affinity)


def pairwise_loss(
    logits: Float[Tensor, "R h w"],
    alike: Bool[Tensor, "8 h w"],
    inside: Bool[Tensor, "R h w"],
    weights: Float[Tensor, "R"] | None = None,
    dilation: int = 2,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Surprise at two places of one colour being of one side, both the object's or both not.

    Only pairs that count are computed, so that small objects cost little.

    Args:
        logits: Of masks of one image.
        alike: Whether each place and the eight around it are of one colour, as :func:`colour_affinity` orders them; no
            place out of the map is.
        inside: The box of each mask: the first of the two lies in it.
        weights: Of each mask; none: 1.
        dilation: As for :func:`colour_affinity`.

    Returns:
        The sum over all pairs, to be divided by the second, their number, of as many images as are learned together.

    Reference:
        Tian et al., BoxInst, CVPR 2021, section 3.3.
    """
    flat = logits.flatten()
    total, count = (flat * 0).sum(), torch.zeros((), dtype=torch.int64, device=flat.device)
    height, width = logits.shape[1:]
    for (dy, dx), own in zip(_AROUND, alike, strict=True):
        here = torch.nonzero((inside & own).flatten()).flatten()
        one, other = flat[here], flat[here + dilation * (dy * width + dx)]
        both = functional.logsigmoid(one) + functional.logsigmoid(other)
        neither = functional.logsigmoid(-one) + functional.logsigmoid(-other)
        surprise = -torch.logaddexp(both, neither)
        if weights is not None:
            surprise = surprise * weights[here // (height * width)]
        total, count = total + surprise.sum(), count + len(here)
    return total, count


def category_loss(
    logits: Float[Tensor, "N K"],
    targets: Float[Tensor, "N K"],
    weights: Float[Tensor, "N"],
    count: int,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Tensor, ""]:
    """Focal loss of each cell in each category, weighted; the sum over one more than the cells that hold objects.

    Args:
        logits: Of all cells of all images.
        targets: 1 in the category of the object of a cell, else 0.
        weights: Of each cell.
        count: Cells that hold an object.
        alpha: Weight of what is an object's; 1 - alpha is that of the rest (paper: 0.25).
        gamma: How much less is learned from what is known already (paper: 2).

    Reference:
        Lin et al., Focal loss for dense object detection, ICCV 2017; Wang et al., SOLO, ECCV 2020.
    """
    each = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    return (weights[:, None] * each).sum() / (count + 1)


def embedding_loss(
    predicted: Float[Tensor, "R E"], targets: Float[Tensor, "R E"], weights: Float[Tensor, "R"]
) -> Float[Tensor, ""]:
    """One minus the cosine of what a cell says and what its object is like; the weighted mean, 0 of nothing.

    Reference:
        Wang et al., FreeSOLO, CVPR 2022, section 3.3. Its released code computes this and multiplies it by zero.
    """
    return weighted_mean(1 - functional.cosine_similarity(predicted, targets, dim=1), weights)


def weighted_mean(losses: Float[Tensor, "R"], weights: Float[Tensor, "R"]) -> Float[Tensor, ""]:
    """Sum of what each loss times its weight is, over how many there are; 0 of none, and still connected."""
    return (weights * losses).sum() / max(len(losses), 1)
