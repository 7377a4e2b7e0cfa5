"""Pictures with objects to learn from: plain shapes of one colour each on a noisy ground."""

import numpy as np
import torch

from figureground.detectors import Target
from figureground.ops.masks import masks_to_boxes


def draw(seed: int, count: int, size: tuple[int, int] = (96, 96)) -> tuple[torch.Tensor, Target]:
    """A picture with `count` discs and rectangles, the later ones before the earlier ones."""
    generator = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    picture = generator.uniform(0.3, 0.7, 3) + generator.normal(scale=0.03, size=(height, width, 3))
    masks = torch.zeros(0, height, width, dtype=torch.bool)
    for _ in range(count):
        radius = generator.uniform(9, min(18, min(size) / 2))
        row, column = generator.uniform(radius, height - radius), generator.uniform(radius, width - radius)
        if generator.random() < 0.5:
            shape = (y - row) ** 2 + (x - column) ** 2 < radius**2
        else:
            shape = (np.abs(y - row) < 0.8 * radius) & (np.abs(x - column) < radius)
        picture[shape] = generator.uniform(0, 1, 3) + generator.normal(scale=0.03, size=(shape.sum(), 3))
        new = torch.from_numpy(shape)
        masks = torch.cat([masks & ~new, new[None]])
    masks = masks[masks.sum((1, 2)) > 30]
    labels = torch.ones(len(masks), dtype=torch.int64)
    image = torch.from_numpy(picture.clip(0, 1)).permute(2, 0, 1).float()
    return image, Target(boxes=masks_to_boxes(masks), labels=labels, masks=masks)


def random_boxes(count: int, generator: torch.Generator, extent: float = 100.0) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=generator) * extent
    low, high = corners.amin(1), corners.amax(1)
    return torch.cat([low, high + 1], dim=1)
