"""Folders of drawn pictures with their exact masks, as a `label` run leaves them."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from figureground.data.coco import annotate, write_coco
from figureground.structures import Instances
from tests.detectors.scenes import draw


def write_labelled(
    folder: Path, count: int, *, objects: int | None = None, size: tuple[int, int] = (64, 80), first_seed: int = 0
) -> Path:
    """Write pictures into ``folder/photos`` and their masks into ``folder/run``; return the run."""
    (folder / "photos").mkdir(parents=True)
    (folder / "run").mkdir()
    images = []
    for index in range(count):
        pixels, target = draw(first_seed + index, objects or 1 + index % 3, size)
        picture = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
        name = f"{index:03d}.png"
        Image.fromarray(picture).save(folder / "photos" / name)
        scores = torch.linspace(1, 0.6, len(target["boxes"]))
        instances = Instances(target["masks"], target["boxes"], scores, target["labels"])
        images.append(annotate(name, size, instances))
    write_coco(folder / "run" / "annotations.json", lambda: images, "drawn")
    facts = {"stage": "label", "image_root": str(folder / "photos")}
    (folder / "run" / "result.json").write_text(json.dumps(facts))
    return folder / "run"


def edit(run: Path, change: Any) -> None:
    """Change the annotations of a run in place."""
    path = run / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
