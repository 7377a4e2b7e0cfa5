"""How good the proposals are: CorLoc and class-agnostic AP/AR on the labelled photographs.

    python -m benchmarks.bench_discovery                       # every row of VARIANTS, writes results/discovery.csv
    python -m benchmarks.bench_discovery maskcut "method=maskcut maskcut.tau=0.3"   # some, or settings: printed only

CorLoc: the box of highest score has IoU >= 0.5 with any box of the image that is not crowd, difficult ones included;
images without truth are left out; an image without a proposal counts as missed. AP and AR are COCO's, masks, one
category, 100 detections. Intervals: 95 % bootstrap over images.
"""

import contextlib
import io
import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.record import SHARED, write_rows
from figureground.data.coco import annotate
from figureground.data.images import decode
from figureground.ops.masks import masks_to_boxes, resize_masks
from figureground.stages.label import configure
from figureground.stages.labeller import Labeller
from figureground.structures import Instances

SETS = ("voc100", "coco128", "weizmann", "davis8")
VARIANTS: dict[str, list[str]] = {
    "centred-box": [],
    "background": [],
    "background-coarse": ["refine.method=none"],
    "background-reference": ["method=background", "preset=reference"],
    "maskcut": ["method=maskcut"],
    "maskcut-reference": ["method=maskcut", "preset=reference"],
    "tokencut": ["method=tokencut"],
    "tokencut-reference": ["method=tokencut", "preset=reference"],
}


def main() -> None:
    chosen = sys.argv[1:] or list(VARIANTS)
    for name in chosen:
        VARIANTS.setdefault(name, name.split())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in SETS:
            with tarfile.open(SHARED / "data" / "eval" / f"{name}.tar") as archive:
                archive.extractall(Path(folder) / name, filter="data")
        for variant in chosen:
            row = {"variant": variant, "settings": " ".join(VARIANTS[variant])}
            for name in SETS:
                row |= {f"{name}_{key}": value for key, value in measure(variant, Path(folder) / name).items()}
            print(json.dumps(row), flush=True)
            rows.append(row)
    if not sys.argv[1:]:
        print(write_rows("discovery", rows))


def measure(variant: str, folder: Path) -> dict[str, Any]:
    """All numbers of one variant on one set."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations.json"))
    find = centred_box if variant == "centred-box" else Labeller(configure(assignments=VARIANTS[variant]))
    found: dict[int, Instances] = {}
    seconds = 0.0
    for image in truth.loadImgs(truth.getImgIds()):
        start = time.perf_counter()
        pixels, size = decode(folder / "images" / Path(image["file_name"]).name)
        instances = find(pixels, size)
        seconds += time.perf_counter() - start
        found[image["id"]] = to_size(instances, size)
    numbers = {"ms": round(1000 * seconds / len(found)), "masks": round(np.mean([len(f) for f in found.values()]), 2)}
    if folder.name in ("voc100", "coco128"):
        numbers |= interval("corloc", corloc(truth, found))
    if folder.name == "coco128":
        numbers |= average_precision(truth, found)
    if folder.name in ("weizmann", "davis8"):
        numbers |= interval("iou", best_iou(truth, found))
    return numbers


def centred_box(pixels: np.ndarray, size: tuple[int, int]) -> Instances:
    """What nothing learned and nothing looked at gives: a box of 70 % of the sides."""
    height, width = size
    mask = torch.zeros((1, height, width), dtype=torch.bool)
    mask[:, round(0.15 * height) : round(0.85 * height), round(0.15 * width) : round(0.85 * width)] = True
    return Instances(mask, masks_to_boxes(mask), torch.ones(1), torch.ones(1, dtype=torch.int64))


def to_size(found: Instances, size: tuple[int, int]) -> Instances:
    """Instances at the size of the image."""
    masks = resize_masks(found.masks, size)
    keep = masks.flatten(1).any(1)
    return Instances(masks[keep], masks_to_boxes(masks[keep]), found.scores[keep], found.labels[keep])


def corloc(truth: COCO, found: dict[int, Instances]) -> list[float]:
    """One 0 or 1 for each image with truth."""
    hits = []
    for image_id, instances in found.items():
        boxes = [a["bbox"] for a in truth.loadAnns(truth.getAnnIds([image_id])) if not a.get("iscrowd")]
        if not boxes:
            continue
        hit = 0.0
        if len(instances):
            x1, y1, x2, y2 = instances.boxes[0].tolist()
            for x, y, w, h in boxes:
                overlap = max(0.0, min(x2, x + w) - max(x1, x)) * max(0.0, min(y2, y + h) - max(y1, y))
                hit = max(hit, float(overlap / ((x2 - x1) * (y2 - y1) + w * h - overlap) >= 0.5))
        hits.append(hit)
    return hits


def best_iou(truth: COCO, found: dict[int, Instances]) -> list[float]:
    """IoU of the surest mask with the one true foreground, for each image."""
    values = []
    for image_id, instances in found.items():
        [annotation] = truth.loadAnns(truth.getAnnIds([image_id]))[:1]
        mask = truth.annToMask(annotation).astype(bool)
        surest = instances.masks[0].numpy() if len(instances) else np.zeros_like(mask)
        values.append(float((mask & surest).sum() / (mask | surest).sum()))
    return values


def average_precision(truth: COCO, found: dict[int, Instances]) -> dict[str, float]:
    """COCO's numbers in per cent, masks."""
    detections: Any = []
    for image_id, instances in found.items():
        size = (truth.imgs[image_id]["height"], truth.imgs[image_id]["width"])
        for annotation in annotate("", size, instances)["annotations"]:
            detections.append({**annotation, "image_id": image_id})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(detections), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {"ap": 0, "ap50": 1, "ar1": 6, "ar10": 7, "ar100": 8}
    return {name: round(100 * float(evaluation.stats[index]), 2) for name, index in names.items()}


def interval(name: str, values: list[float]) -> dict[str, Any]:
    """Mean in per cent with its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.percentile(100 * draws, [2.5, 97.5])
    return {name: round(100 * float(np.mean(values)), 1), f"{name}_95": f"{low:.1f}-{high:.1f}"}


if __name__ == "__main__":
    main()
