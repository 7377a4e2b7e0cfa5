"""Pictures of a few kinds: each has a hue and a pattern, lit by chance on a ground that says nothing."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 48
KINDS = {"bars": (1.0, 0.3, 0.3), "checks": (0.3, 0.9, 0.3), "discs": (0.4, 0.4, 1.0), "rings": (0.9, 0.8, 0.2)}


def draw_kinds(folder: Path, each: int) -> None:
    """Write ``each`` pictures of every kind into a folder of its name."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    for place, (kind, colour) in enumerate(KINDS.items()):
        (folder / kind).mkdir(parents=True)
        for index in range(each):
            generator = np.random.default_rng((place, index))
            row, column = generator.uniform(0, 12, 2)
            period = generator.uniform(10, 14)
            across, down = (x + column) % period - period / 2, (y + row) % period - period / 2
            distance = np.hypot(across, down) / period
            figure = {
                "bars": across > 0,
                "checks": (across > 0) ^ (down > 0),
                "discs": distance < 0.35,
                "rings": (distance > 0.22) & (distance < 0.42),
            }[kind]
            light = generator.uniform(0.2, 1)
            slope = generator.uniform(-0.3, 0.3, 2) @ np.stack([y / SIDE - 0.5, x / SIDE - 0.5]).reshape(2, -1)
            ground = generator.uniform(0.1, 0.9) + slope.reshape(SIDE, SIDE, 1)
            picture = np.where(figure[..., None], light * np.array(colour), ground)
            picture = picture + generator.normal(scale=0.08, size=picture.shape)
            Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(folder / kind / f"{index:03d}.png")
