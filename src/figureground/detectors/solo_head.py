"""What SOLOv2 sees in a pyramid: categories and kernels of its cells, and the features that kernels are applied to.

Wang, Zhang, Kong, Li, Shen: SOLOv2: Dynamic and fast instance segmentation. NeurIPS 2020, sections 3.1 and 3.2. Written
from the paper.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Cells(NamedTuple):
    """What is said of all cells of all levels, each level row by row.

    Attributes:
        categories: Logits of each category.
        kernels: Of the 1x1 convolution that makes a cell's mask.
        embeddings: What the object of each cell is like, where that is learned.
    """

    categories: Float[Tensor, "B N K"]
    kernels: Float[Tensor, "B N C"]
    embeddings: Float[Tensor, "B N E"] | None


class CellHead(nn.Module):
    """Two branches of convolutions on the levels resized to their grids; the one for kernels knows where it is.

    Args:
        channels: Of the pyramid.
        width: Of the hidden layers.
        layers: How many there are in each branch.
        grids: Cells on a side, level by level.
        categories: How many.
        kernel: Numbers of a kernel.
        embedding: Numbers of an embedding; none: there are none.

    Reference:
        Wang et al., NeurIPS 2020, section 3.1.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        layers: int,
        grids: Sequence[int],
        categories: int,
        kernel: int,
        embedding: int | None,
    ) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.category_convs = nn.Sequential(*(_conv(channels if i == 0 else width, width) for i in range(layers)))
        self.kernel_convs = nn.Sequential(*(_conv(channels + 2 if i == 0 else width, width) for i in range(layers)))
        self.category = nn.Conv2d(width, categories, 3, padding=1)
        self.kernel = nn.Conv2d(width, kernel, 3, padding=1)
        self.embedding = None if embedding is None else nn.Conv2d(width, embedding, 3, padding=1)

    def forward(self, maps: Sequence[Float[Tensor, "B C _ _"]]) -> Cells:
        """Look at the five levels; categories and embeddings are in float32."""
        # The finest level is halved and the coarsest doubled, as published: neighbours in size share a stride.
        maps = [_resize(maps[0], _half(maps[0])), *maps[1:-1], _resize(maps[-1], _size(maps[-2]))]
        categories, kernels, embeddings = [], [], []
        for level, side in zip(maps, self.grids, strict=True):
            grid = _resize(with_coordinates(level), (side, side))
            hidden = self.category_convs(grid[:, :-2])
            categories.append(_by_cell(self.category(hidden)))
            kernels.append(_by_cell(self.kernel(self.kernel_convs(grid))))
            if self.embedding is not None:
                embeddings.append(_by_cell(self.embedding(hidden)))
        said = torch.cat(embeddings, 1).float() if embeddings else None
        return Cells(torch.cat(categories, 1).float(), torch.cat(kernels, 1), said)


class MaskFeatures(nn.Module):
    """Features of stride 4 made of the levels of strides 4 to 32, the coarsest of which knows where it is.

    Args:
        channels: Of the pyramid.
        width: Of the hidden layers.
        kernel: Of the features.

    Reference:
        Wang et al., NeurIPS 2020, section 3.2.2.
    """

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_enlarging(channels, width, times) for times in range(4))
        self.join = _conv(width, kernel, size=1)

    def forward(self, maps: Sequence[Float[Tensor, "B C _ _"]]) -> Float[Tensor, "B K h w"]:
        """Of the pyramid from P2 on."""
        known = [*maps[:3], with_coordinates(maps[3])]
        parts = [level(features) for level, features in zip(self.levels, known, strict=True)]
        return self.join(torch.stack(parts).sum(0))


def with_coordinates(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B _ h w"]:
    """Features with two more: where each lies from left, -1, to right, 1, and from top to bottom."""
    count, _, height, width = features.shape
    y, x = (torch.linspace(-1, 1, length, device=features.device, dtype=features.dtype) for length in (height, width))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])
    return torch.cat([features, places.expand(count, -1, -1, -1)], dim=1)


def _enlarging(channels: int, width: int, times: int) -> nn.Sequential:
    """Convolutions, each but that of stride 4 followed by an enlargement to twice the side."""
    if times == 0:
        return nn.Sequential(_conv(channels, width))
    layers: list[nn.Module] = []
    for step in range(times):
        # Coordinates come with the coarsest.
        before = width if step else channels + 2 * (times == 3)
        layers += [_conv(before, width), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)]
    return nn.Sequential(*layers)


def _conv(before: int, after: int, size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(32, after), after), nn.ReLU())


def _by_cell(grid: Float[Tensor, "B C s s"]) -> Float[Tensor, "B _ C"]:
    return grid.flatten(2).mT


def _size(features: Tensor) -> tuple[int, int]:
    return features.shape[2], features.shape[3]


def _half(features: Tensor) -> tuple[int, int]:
    return features.shape[2] // 2, features.shape[3] // 2


def _resize(features: Float[Tensor, "B C _ _"], size: tuple[int, int]) -> Float[Tensor, "B C _ _"]:
    return functional.interpolate(features, size=size, mode="bilinear", align_corners=False)
