"""Plain pycocotools, and slow, obvious loops over images, pixels and thresholds."""

import contextlib
import copy
import io
import math
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def coco_stats(
    truth: dict[str, Any], detections: list[dict[str, Any]], kind: str, use_cats: bool = True, image_ids: Any = None
) -> np.ndarray:
    """The twelve numbers that pycocotools prints."""
    detections = copy.deepcopy(detections)
    if kind == "segm":
        for detection in detections:
            # With a box, loadRes would take its area for that of the mask.
            del detection["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)  # type: ignore[assignment]
        coco.createIndex()
        if detections:
            found = coco.loadRes(detections)  # type: ignore[arg-type]
        else:
            found = COCO()
            found.dataset = {**coco.dataset, "annotations": []}  # type: ignore[typeddict-item]
            found.createIndex()
        evaluation = COCOeval(coco, found, kind)  # type: ignore[arg-type]
        evaluation.params.useCats = int(use_cats)
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.array(evaluation.stats)


def corloc(truth: dict[str, Any], detections: list[dict[str, Any]]) -> list[float]:
    """A hit or a miss for each image with a box that is not crowd."""
    hits = []
    for image in sorted(truth["images"], key=lambda image: image["id"]):
        boxes = [a["bbox"] for a in truth["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        if not boxes:
            continue
        best, best_score = None, -math.inf
        for detection in detections:
            if detection["image_id"] == image["id"] and detection["score"] > best_score:
                best, best_score = detection["bbox"], detection["score"]
        hits.append(float(best is not None and any(box_iou(best, box) >= 0.5 for box in boxes)))
    return hits


def box_iou(left: list[float], right: list[float]) -> float:
    width = min(left[0] + left[2], right[0] + right[2]) - max(left[0], right[0])
    height = min(left[1] + left[3], right[1] + right[3]) - max(left[1], right[1])
    inside = max(width, 0) * max(height, 0)
    union = left[2] * left[3] + right[2] * right[3] - inside
    return inside / union if union else 0.0


def max_f(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """For each threshold the mean of F over the images; then the highest."""
    best = 0.0
    for step in range(255):
        threshold = step * (1 - 1e-10) / 254
        total = 0.0
        for soft, mask in zip(maps, masks, strict=True):
            hits = passed = objects = 0
            for value, inside in zip(soft.ravel(), mask.ravel(), strict=True):
                hits += int(value >= threshold and inside)
                passed += int(value >= threshold)
                objects += int(inside)
            if hits:
                precision, recall = hits / passed, hits / objects
                total += 1.3 * precision * recall / (0.3 * precision + recall)
        best = max(best, total / len(maps))
    return best


def s_measure(soft: np.ndarray, mask: np.ndarray) -> float:
    """Fan et al. 2017, as the paper writes it, with rows and columns counted from one."""
    height, width = mask.shape
    inside = [float(soft[y, x]) for y in range(height) for x in range(width) if mask[y, x]]
    outside = [1 - float(soft[y, x]) for y in range(height) for x in range(width) if not mask[y, x]]
    share = len(inside) / (height * width)
    objects = 0.0
    for weight, values in ((share, inside), (1 - share, outside)):
        mean, deviation = moments(values)
        objects += weight * 2 * mean / (mean**2 + 1 + deviation)
    rows = [y for y in range(1, height + 1) for x in range(1, width + 1) if mask[y - 1, x - 1]]
    columns = [x for y in range(1, height + 1) for x in range(1, width + 1) if mask[y - 1, x - 1]]
    middle_y = math.floor(sum(rows) / len(rows) + 0.5)
    middle_x = math.floor(sum(columns) / len(columns) + 0.5)
    regions = 0.0
    for above in (True, False):
        for left in (True, False):
            pixels = [
                (float(soft[y - 1, x - 1]), float(mask[y - 1, x - 1]))
                for y in range(1, height + 1)
                for x in range(1, width + 1)
                if (y <= middle_y) == above and (x <= middle_x) == left
            ]
            if pixels:
                regions += len(pixels) / (height * width) * similarity(pixels)
    return max(0.0, 0.5 * objects + 0.5 * regions)


def similarity(pixels: list[tuple[float, float]]) -> float:
    mean_x, deviation_x = moments([x for x, _ in pixels])
    mean_y, deviation_y = moments([y for _, y in pixels])
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in pixels) / max(len(pixels) - 1, 1)
    above = 4 * mean_x * mean_y * covariance
    below = (mean_x**2 + mean_y**2) * (deviation_x**2 + deviation_y**2)
    if abs(above) > 1e-12:
        return above / below
    return 1.0 if below < 1e-12 else 0.0


def moments(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
