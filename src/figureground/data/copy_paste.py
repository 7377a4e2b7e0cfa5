"""Copy-paste: objects of one image of a batch laid over another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Shaped
from pydantic import Field, field_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from figureground.config import Config
from figureground.data.targets import Targets, targets_of
from figureground.ops.masks import resize_masks

# Bytes or floats; the images of a batch differ in size.
_Image = Shaped[Tensor, "3 _ _"]


class CopyPasteConfig(Config):
    """How objects are pasted; the published constants of CutLER's first round."""

    rate: float = Field(
        default=1.0, ge=0, le=1, description="Probability that an image gets objects of another (CutLER: 1)."
    )
    copies: Literal["random", "all"] | int = Field(
        default="random",
        description="How many: a number drawn from 1 to all of them, all, or so many at most "
        "(CutLER: random, but never all; CuVLER's self-training: all).",
    )
    scale: tuple[float, float] = Field(
        default=(0.3, 1.0),
        description="Range of the size that the image pasted from is brought to, as a share of the largest that fits "
        "into the other (CutLER: 0.3 to 1; self-training: 0.5 to 1).",
    )
    max_occlusion: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of its pixels that no instance may lose; what would take it is not pasted (CutLER: 0.5).",
    )

    @field_validator("copies")
    @classmethod
    def _some(cls, copies: Literal["random", "all"] | int) -> Literal["random", "all"] | int:
        if isinstance(copies, int) and copies < 1:
            raise ValueError(f"Configuration key 'copy_paste.copies': at least 1, got {copies}.")
        return copies

    @field_validator("scale")
    @classmethod
    def _ascending(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not 0 < bounds[0] <= bounds[1] <= 1:
            raise ValueError(f"Configuration key 'copy_paste.scale': 0 < low <= high <= 1, got {bounds}.")
        return bounds


def copy_paste(
    images: Sequence[_Image], targets: Sequence[Targets], config: CopyPasteConfig, generator: torch.Generator
) -> tuple[list[_Image], list[Targets]]:
    """Paste objects of each image of a batch into another one.

    The image pasted from is scaled and placed at random inside the other, and some of its objects come along; all
    objects are taken from the images as they were given. What is pasted lies on top, in one layer: masks beneath lose
    the pixels it covers, and pasted masks do not overlap. An object is passed over where, with those before it, it
    would take ``max_occlusion`` or more of an instance beneath, or would itself lose that much to those before it. So
    no instance ever disappears; a small object on a large one is kept, as it hides little of it.

    Args:
        images: RGB, bytes or floats; their sizes may differ. On any device.
        targets: Their instances.
        config: How many objects, how large, and how much they may hide.
        generator: Of the draws, on the CPU. What an image gets depends on it, its place, and the image pasted from.

    Returns:
        Images and targets, instances of the image first; the inputs are left as they are. Images that get nothing are
        returned as they came.

    Reference:
        Wang et al., CutLER, CVPR 2023, implementation details and released training loop; Ghiasi et al., CVPR 2021.
        Deviates: proportions are kept; the number of copies can reach all; the middle image of an odd batch takes the
        next one and not itself; what an instance loses is summed over all pasted objects, and pasted objects count as
        instances, too (released: each pair of a pasted object and an instance beneath by itself); only the boxes of
        the pasted objects are resized.
    """
    # One seed each, so that no image's draws depend on how many another one takes.
    seeds = torch.randint(2**62, (len(images),), generator=generator).tolist()
    pasted = [
        _paste(images[i], targets[i], images[source], targets[source], config, torch.Generator().manual_seed(seed))
        for i, (source, seed) in enumerate(zip(source_indices(len(images)), seeds, strict=True))
    ]
    return [image for image, _ in pasted], [target for _, target in pasted]


def source_indices(count: int) -> list[int]:
    """The image that each image of a batch takes objects of: the batch reversed, but never itself unless alone.

    Example:
        >>> source_indices(4), source_indices(3), source_indices(1)
        ([3, 2, 1, 0], [2, 2, 0], [0])
    """
    reversed_order = (count - 1 - index for index in range(count))
    return [(index + 1) % count if source == index else source for index, source in enumerate(reversed_order)]


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """A pasted object: where it lies, and which pixels of that window are its own."""

    window: tuple[slice, slice]
    mask: Bool[Tensor, "h w"]
    index: int


def _paste(
    image: _Image,
    targets: Targets,
    source: _Image,
    source_targets: Targets,
    config: CopyPasteConfig,
    generator: torch.Generator,
) -> tuple[_Image, Targets]:
    chance, scale, down, right = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    count = len(source_targets["masks"])
    if chance >= config.rate or count == 0:
        return image, targets
    order = torch.randperm(count, generator=generator).tolist()
    copies = int(torch.randint(1, count + 1, (), generator=generator)) if config.copies == "random" else count
    if isinstance(config.copies, int):
        copies = min(config.copies, count)

    (height, width), (source_height, source_width) = image.shape[1:], source.shape[1:]
    low, high = config.scale
    factor = (low + (high - low) * scale) * min(height / source_height, width / source_width)
    top, left = down * (height - source_height * factor), right * (width - source_width * factor)

    canvas = image.clone()
    covered = torch.zeros_like(image[0], dtype=torch.bool)
    areas = targets["masks"].sum((1, 2)).clamp(min=1)
    lost = torch.zeros_like(areas)
    pieces: list[_Piece] = []
    # All at once: each one asked for on its own would wait for the device anew.
    boxes = source_targets["boxes"].tolist()
    for index in order[:copies]:
        x1, y1, x2, y2 = (int(value) for value in boxes[index])
        rows = _scaled(y1, y2, factor, top, height)
        columns = _scaled(x1, x2, factor, left, width)
        size = (rows.stop - rows.start, columns.stop - columns.start)
        whole = resize_masks(source_targets["masks"][index, y1:y2, x1:x2][None], size)[0]
        mask = whole & ~covered[rows, columns]
        would_lose = lost + (targets["masks"][:, rows, columns] & mask).sum((1, 2))
        shown, drawn = mask.sum(), whole.sum()
        hides = (would_lose >= config.max_occlusion * areas).any()
        # True as well where nothing is drawn: too thin for its new size.
        if bool(hides | (drawn - shown >= config.max_occlusion * drawn)):
            continue
        lost = would_lose
        covered[rows, columns] |= mask
        pixels = transforms.resize(source[:, y1:y2, x1:x2], list(size), antialias=True)
        canvas[:, rows, columns] = torch.where(mask, pixels, canvas[:, rows, columns])
        pieces.append(_Piece((rows, columns), mask, index))
    return canvas, _joined(targets, source_targets, covered, pieces)


def _joined(
    targets: Targets, source_targets: Targets, covered: Bool[Tensor, "H W"], pieces: Sequence[_Piece]
) -> Targets:
    """The instances beneath without what is covered, then the pasted ones."""
    pasted = covered.new_zeros((len(pieces), *covered.shape))
    for mask, piece in zip(pasted, pieces, strict=True):
        mask[piece.window] = piece.mask
    indices = torch.tensor([piece.index for piece in pieces], dtype=torch.int64, device=covered.device)
    embeddings = None
    if "embeddings" in targets and "embeddings" in source_targets:
        embeddings = torch.cat([targets["embeddings"], source_targets["embeddings"][indices]])
    return targets_of(
        torch.cat([targets["masks"] & ~covered, pasted]),
        torch.cat([targets["labels"], source_targets["labels"][indices]]),
        torch.cat([targets["weights"], source_targets["weights"][indices]]),
        embeddings,
    )


def _scaled(first: int, last: int, factor: float, shift: float, length: int) -> slice:
    """Where an interval comes to lie; at least one pixel, inside the image."""
    extent = min(max(round((last - first) * factor), 1), length)
    start = min(max(round(first * factor + shift), 0), length - extent)
    return slice(start, start + extent)
