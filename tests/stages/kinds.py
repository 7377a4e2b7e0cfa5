"""Folders of drawn pictures of a few kinds of objects, with a truth of classes and a run that has the masks."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from figureground.data.coco import annotate, write_coco
from figureground.ops.masks import masks_to_boxes
from figureground.structures import Instances

KINDS = {"brick": (0.8, 0.25, 0.15), "leaf": (0.15, 0.7, 0.2), "pool": (0.2, 0.3, 0.9)}
SIZE = (72, 96)


def draw(index: int, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """A disc of a kind on grey, and where it is."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    picture = 0.5 + rng.normal(scale=0.02, size=(*SIZE, 3))
    disc = (y - rng.uniform(30, 42)) ** 2 + (x - rng.uniform(30, 66)) ** 2 < rng.uniform(18, 24) ** 2
    picture[disc] = np.array(list(KINDS.values())[kind]) + rng.normal(scale=0.02, size=(disc.sum(), 3))
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), disc


def write_kinds(folder: Path, count: int, first: int = 0) -> Path:
    """Write ``truth`` (photos, maps, classes.json) and ``run`` (the exact masks) into a folder."""
    truth, run = folder / "truth", folder / "run"
    for part in (truth / "images", truth / "maps", run):
        part.mkdir(parents=True)
    images = []
    for index in range(first, first + count):
        pixels, disc = draw(index, index % len(KINDS))
        Image.fromarray(pixels).save(truth / "images" / f"{index:03d}.png")
        numbers = np.where(disc, index % len(KINDS) + 1, 0).astype(np.uint8)
        numbers[0] = 255
        Image.fromarray(numbers).save(truth / "maps" / f"{index:03d}.png")
        masks = torch.from_numpy(disc)[None]
        one = torch.ones(1)
        images.append(annotate(f"{index:03d}.png", SIZE, Instances(masks, masks_to_boxes(masks), one, one.long())))
    (truth / "classes.json").write_text(json.dumps({"classes": ["background", *KINDS]}))
    write_coco(run / "annotations.json", lambda: images, "drawn")
    (run / "result.json").write_text(json.dumps({"image_root": str(truth / "images")}))
    return folder
