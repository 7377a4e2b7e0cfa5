"""Random truths and predictions, and the real ones of coco128 with their objects moved about."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figureground.data.truth import AnnotationSet, read_predictions, read_truth
from figureground.ops.rle import decode, encode

HEIGHT, WIDTH = 120, 160


def describe(mask: np.ndarray) -> dict[str, Any]:
    """Box, area and runs of a mask."""
    rows, columns = np.nonzero(mask)
    x, y = int(columns.min()), int(rows.min())
    return {
        "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
        "area": int(mask.sum()),
        "segmentation": encode(torch.from_numpy(mask)[None])[0],
    }


def random_scene(seed: int, images: int = 12, levels: int = 1000) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A truth of ellipses of all sizes, some crowd, some difficult, and detections near and far from them.

    Few ``levels`` of scores give ties. The first image has neither, the second no detection, the third no truth.
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": 7 * i + 3, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "annotations": [],
        "categories": [{"id": 1, "name": "object"}],
    }
    detections = []
    for index, image in enumerate(truth["images"]):
        for _ in range(int(rng.integers(1, 9)) if index else 0):
            centre = rng.random(2) * (HEIGHT, WIDTH)
            radii = np.exp(rng.uniform(np.log(4), np.log(70), 2))
            entry = {"image_id": image["id"], "category_id": 1}
            if index != 2:
                truth["annotations"].append(
                    {
                        **entry,
                        **describe(ellipse(centre, radii)),
                        "id": len(truth["annotations"]) + 1,
                        "iscrowd": int(rng.random() < 0.15),
                        "difficult": int(rng.random() < 0.2),
                    }
                )
            for _ in range(int(rng.integers(0, 4)) if index != 1 else 0):
                moved = centre + rng.normal(0, 0.2, 2) * radii
                found = describe(ellipse(moved, radii * rng.uniform(0.7, 1.3, 2)))
                score = int(rng.integers(1, levels + 1)) / levels
                detections.append({**entry, **found, "score": score})
    return truth, detections


def ellipse(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """A filled ellipse; never empty."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    mask[np.clip(int(centre[0]), 0, HEIGHT - 1), np.clip(int(centre[1]), 0, WIDTH - 1)] = True
    return mask


def write(folder: Path, truth: Any, predictions: Any) -> tuple[AnnotationSet, AnnotationSet]:
    """Both as files, read back."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "predictions.json").write_text(json.dumps(predictions))
    read = read_truth(folder / "truth.json")
    return read, read_predictions(folder / "predictions.json", read)


def coco128(shared: Path) -> dict[str, Any]:
    """The truth of the real photographs."""
    with tarfile.open(shared / "data" / "eval" / "coco128.tar") as archive:
        for member in archive:
            if member.name.endswith("annotations.json"):
                file = archive.extractfile(member)
                assert file is not None
                return json.load(file)
    raise FileNotFoundError("annotations.json")


def jittered(truth: AnnotationSet, seed: int) -> list[dict[str, Any]]:
    """Each true mask shifted by up to a tenth of its size, scored at random; a few are lost."""
    rng = np.random.default_rng(seed)
    detections = []
    for annotation in truth.all():
        if annotation.mask is None or rng.random() < 0.1:
            continue
        mask = decode([annotation.mask])[0].numpy()
        shift = np.round(rng.uniform(-0.1, 0.1, 2) * (annotation.bbox[3], annotation.bbox[2])).astype(int)
        moved = np.roll(mask, shift, (0, 1))
        if moved.any():
            score = round(float(rng.random()), 2)
            detections.append({"image_id": annotation.image.id, "category_id": 1, **describe(moved), "score": score})
    return detections
