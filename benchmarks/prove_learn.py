"""Learn a detector from drawn pictures without their masks, and show that it beats the masks it learned from.

python -m benchmarks.prove_learn [FOLDER] [METHOD]        # default: a temporary folder, background; minutes on one core

The full recipe `tiny` with two rounds of self-training, killed once with SIGKILL in the middle and run again. All
numbers are of other pictures than those that were learned from.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from figureground.data.coco import ImageAnnotations, annotate, write_coco
from figureground.ops.masks import masks_to_boxes
from figureground.storage import jsonlines
from figureground.structures import Instances
from figureground.viewer.page import read_json

_SIZE = (96, 96)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        method = sys.argv[2] if len(sys.argv) > 2 else "background"
        if not (folder / "truth.json").exists():
            draw_pictures(folder / "photos", 120, first_seed=0)
            images = draw_pictures(folder / "other", 60, first_seed=10_000)
            write_coco(folder / "truth.json", lambda: images, "drawn")
        command = [sys.executable, "-m", "figureground", "learn", str(folder / "photos"), "--out", str(folder / "run")]
        command += ["--recipe", "tiny", "--method", method, "--set", "label.size=192", "--rounds", "2"]
        command += ["--truth", str(folder / "truth.json"), "--truth-images", str(folder / "other")]
        start = time.monotonic()
        kill_once(command, folder / "run")
        subprocess.run(command, check=True)
        print(f"{time.monotonic() - start:.0f} s, one kill included")
        report(folder / "run")


def kill_once(command: list[str], run: Path) -> None:
    """Start, and kill at a random moment of the first training."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (run / "train" / "log.jsonl").exists():
        time.sleep(0.2)
    try:
        process.wait(random.uniform(5, 30))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        steps = [entry["step"] for entry in jsonlines.read(run / "train" / "log.jsonl") if "step" in entry]
        print(f"killed after {len(steps)} steps of the first training")


def report(run: Path) -> None:
    """Print what was measured, and end with an error where the detector is no better than its labels."""
    result = read_json(run / "result.json") or {}
    for name, values in result["measured"].items():
        print(f"{name:10}", "  ".join(f"{measure} {value:5.1f}" for measure, value in values.items()))
    for number, counts in enumerate(result["rounds"], start=1):
        print(f"round {number}: kept {counts['kept']}, replaced {counts['replaced']}, added {counts['added']}")
    first, *others = (values["mask_ap50"] for values in result["measured"].values())
    if min(others) <= first:
        raise SystemExit("the detector does not beat the masks that it learned from")
    print(f"mask AP50 of the masks {first:.1f}, of the detector {others[-1]:.1f}")


def draw_pictures(folder: Path, count: int, first_seed: int) -> list[ImageAnnotations]:
    """Draw pictures of one to three discs and rectangles on a noisy ground; return their true masks."""
    folder.mkdir(parents=True)
    images = []
    for index in range(count):
        pixels, masks = draw(np.random.default_rng(first_seed + index), 1 + index % 3)
        name = f"{index:03d}.png"
        Image.fromarray(pixels).save(folder / name)
        boxes, ones = masks_to_boxes(masks), torch.ones(len(masks))
        images.append(annotate(name, _SIZE, Instances(masks, boxes, ones, ones.long())))
    return images


def draw(chance: np.random.Generator, count: int) -> tuple[np.ndarray, torch.Tensor]:
    """A picture and the visible part of each object; later ones lie before earlier ones."""
    height, width = _SIZE
    y, x = np.mgrid[:height, :width]
    picture = chance.uniform(0.3, 0.7, 3) + chance.normal(scale=0.03, size=(height, width, 3))
    masks: list[np.ndarray] = []
    for _ in range(count):
        radius = chance.uniform(9, 18)
        row, column = chance.uniform(radius, height - radius), chance.uniform(radius, width - radius)
        if chance.random() < 0.5:
            shape = (y - row) ** 2 + (x - column) ** 2 < radius**2
        else:
            shape = (abs(y - row) < 0.8 * radius) & (abs(x - column) < radius)
        picture[shape] = chance.uniform(0, 1, 3) + chance.normal(scale=0.03, size=(int(shape.sum()), 3))
        masks = [mask & ~shape for mask in masks] + [shape]
    seen = torch.from_numpy(np.stack([mask for mask in masks if mask.sum() > 30]))
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), seen


if __name__ == "__main__":
    main()
