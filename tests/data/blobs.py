"""Random instances: ellipses, rectangles, specks and lines that overlap as they like."""

import numpy as np
import torch

from figureground.data.targets import Targets, targets_of


def random_masks(rng: np.random.Generator, count: int, size: tuple[int, int]) -> torch.Tensor:
    """Masks with at least one pixel each."""
    y, x = np.mgrid[: size[0], : size[1]]
    masks = np.zeros((count, *size), dtype=bool)
    for mask in masks:
        row, column = (int(rng.integers(length)) for length in size)
        height, width = rng.uniform(0, 0.5, 2) * size
        kind = rng.integers(4)
        if kind == 0:
            mask |= ((y - row) / (height + 0.5)) ** 2 + ((x - column) / (width + 0.5)) ** 2 <= 1
        elif kind == 1:
            mask |= (abs(y - row) <= height) & (abs(x - column) <= width)
        elif kind == 2:
            mask |= (y == row) & (abs(x - column) <= width)
        mask[row, column] = True
    return torch.from_numpy(masks)


def random_targets(rng: np.random.Generator, count: int, size: tuple[int, int], first_label: int = 1) -> Targets:
    """Targets whose labels tell them apart, and whose embeddings hold the label."""
    labels = torch.arange(first_label, first_label + count)
    return targets_of(
        random_masks(rng, count, size),
        labels,
        torch.from_numpy(rng.uniform(0.1, 1, count)).float(),
        torch.stack([labels, -labels], dim=1).float(),
    )


def check_targets(targets: Targets, size: tuple[int, int]) -> None:
    """Targets keep their contract: of one length, of the image's size, no mask empty, boxes the masks' extents."""
    count = len(targets["masks"])
    assert targets["masks"].shape == (count, *size)
    assert targets["masks"].dtype == torch.bool
    assert targets["boxes"].shape == (count, 4)
    assert targets["boxes"].dtype == targets["weights"].dtype == torch.float32
    assert targets["labels"].shape == targets["weights"].shape == (count,)
    assert targets["labels"].dtype == torch.int64
    if "embeddings" in targets:
        assert targets["embeddings"].tolist() == [[label, -label] for label in targets["labels"].tolist()]
    for mask, box in zip(targets["masks"].cpu().numpy(), targets["boxes"].tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def same(left: Targets, right: Targets) -> bool:
    """Whether two targets are equal to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def copied(targets: Targets) -> Targets:
    """A deep copy."""
    return Targets(**{key: value.clone() for key, value in targets.items()})
