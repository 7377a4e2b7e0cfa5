"""Photographs to learn from: one checkered disc each, of a random colour, on a smooth ground of another."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw(folder: Path, count: int) -> dict[str, np.ndarray]:
    """Write the pictures; return the true mask of each."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:96, :128]
    truths = {}
    for index in range(count):
        generator = np.random.default_rng(index)
        ground = generator.uniform(0.3, 0.7, 3) + 0.15 * (x / 128 - 0.5)[..., None] * generator.normal(size=3)
        ground = ground + generator.normal(scale=0.02, size=(96, 128, 3))
        radius = generator.uniform(17, 29)
        row, column = generator.uniform(radius, 96 - radius), generator.uniform(radius, 128 - radius)
        disc = (y - row) ** 2 + (x - column) ** 2 < radius**2
        checks = np.sign(np.sin(x * np.pi / 3) * np.sin(y * np.pi / 3))[..., None]
        picture = np.where(disc[..., None], generator.uniform(0, 1, 3) + 0.25 * checks, ground)
        name = f"{index:02d}.png"
        Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(folder / name)
        truths[name] = disc
    return truths
