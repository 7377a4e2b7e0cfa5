"""Pictures of one object each: a kind is a pattern and its hue, whatever the light, the shape and the place."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from figureground.data.coco import annotate, write_coco
from figureground.structures import Instances

SIDE = 48
KINDS = {"bars": (1.0, 0.3, 0.3), "checks": (0.3, 0.9, 0.3), "dots": (0.4, 0.4, 1.0), "rings": (0.9, 0.8, 0.2)}


def draw_textures(folder: Path, each: int, first: int = 0) -> tuple[Path, dict[str, np.ndarray]]:
    """Write ``each`` pictures of every kind into ``folder/photos`` and their masks into ``folder/run``.

    Returns:
        The run, and of every picture the class of each pixel: 0 is the ground, a kind its place from 1.
    """
    (folder / "photos").mkdir(parents=True)
    (folder / "run").mkdir()
    truths, labelled = {}, []
    for index in range(each):
        for place, kind in enumerate(KINDS):
            name = f"{index:03d}_{kind}.png"
            pixels, mask = _draw(kind, np.random.default_rng((place, first + index)))
            Image.fromarray(pixels).save(folder / "photos" / name)
            truths[name] = np.where(mask, place + 1, 0)
            masks = torch.from_numpy(mask)[None]
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=torch.float32)
            instances = Instances(masks, box, torch.ones(1), torch.ones(1, dtype=torch.int64))
            labelled.append(annotate(name, (SIDE, SIDE), instances))
    write_coco(folder / "run" / "annotations.json", lambda: labelled, "drawn")
    (folder / "run" / "result.json").write_text(json.dumps({"image_root": str(folder / "photos")}))
    return folder / "run", truths


def _draw(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    row, column = rng.uniform(0, 8, 2)
    across, down = (x + column) % 8 - 4, (y + row) % 8 - 4
    distance = np.hypot(across, down)
    ink = {
        "bars": across > 0,
        "checks": (across > 0) ^ (down > 0),
        "dots": distance < 2.6,
        "rings": (distance > 2) & (distance < 3.6),
    }[kind]
    radius = rng.uniform(11, 18)
    row, column = rng.uniform(radius, SIDE - radius, 2)
    disc = np.hypot(x - column, y - row) < radius
    square = np.maximum(abs(x - column), abs(y - row)) < 0.9 * radius
    mask = disc if rng.random() < 0.5 else square
    slope = rng.uniform(-0.3, 0.3, 2) @ np.stack([y / SIDE - 0.5, x / SIDE - 0.5]).reshape(2, -1)
    ground = rng.uniform(0.1, 0.9) + slope.reshape(SIDE, SIDE, 1)
    figure = rng.uniform(0.2, 1) * np.where(ink[..., None], KINDS[kind], 0.3)
    picture = np.where(mask[..., None], figure, ground) + rng.normal(scale=0.03, size=(SIDE, SIDE, 3))
    return (picture.clip(0, 1) * 255).astype(np.uint8), mask
