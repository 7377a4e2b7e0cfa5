"""The report of a comparison: one self-contained page with the methods side by side on every image."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from figureground.errors import RunError
from figureground.viewer.page import about, duration, read_json, spread, timing, write_page
from figureground.viewer.pictures import instance, picture, score_of, thumbnail_mask, thumbnail_size

MEASURES = {
    "corloc": ("", "CorLoc", "Images whose surest box has an IoU of 0.5 with an object"),
    "iou": ("", "IoU", "Of the surest mask with all objects together, mean over images"),
    "box_ap50": ("Boxes", "AP50", "Average precision at an IoU of 0.5"),
    "box_ap": ("Boxes", "AP", "Average precision, mean over IoUs from 0.5 to 0.95"),
    "box_ar10": ("Boxes", "AR10", "Average recall of 10 boxes an image"),
    "box_ar100": ("Boxes", "AR100", "Average recall of 100 boxes an image"),
    "mask_ap50": ("Masks", "AP50", "Average precision at an IoU of 0.5"),
    "mask_ap": ("Masks", "AP", "Average precision, mean over IoUs from 0.5 to 0.95"),
    "mask_ar10": ("Masks", "AR10", "Average recall of 10 masks an image"),
    "mask_ar100": ("Masks", "AR100", "Average recall of 100 masks an image"),
}


def write_comparison(run: Path, *, load_image: Callable[[str], np.ndarray], max_images: int = 60) -> Path:
    """Write ``report.html`` from what the run of a comparison holds.

    Args:
        run: A directory with ``comparison.json``, the COCO files it names and, where they exist, ``truth.json``,
            ``result.json``, ``environment.json``, ``config.json`` and ``failures.jsonl``.
        load_image: As for :func:`figureground.viewer.write_report`.
        max_images: Images on the page; of a longer run, as many spread evenly over it.

    Returns:
        The path of the report.

    Raises:
        RunError: If a file of the run is missing or cannot be understood, or the report cannot be written.
    """
    return write_page(run / "report.html", "comparison", _gather(run, load_image, max_images))


def _gather(run: Path, load_image: Callable[[str], np.ndarray], max_images: int) -> dict[str, Any]:
    """Everything the template shows."""
    comparison = _read(run / "comparison.json")
    methods = comparison["methods"]
    result = read_json(run / "result.json") or {}
    images = _read(run / methods[0]["annotations"])["images"]
    chosen = [images[i] for i in spread(len(images), max_images)]
    wanted = {image["id"] for image in chosen}
    found = [_by_image(_read(run / method["annotations"]), wanted) for method in methods]
    truth = read_json(run / "truth.json")
    true = {} if truth is None else _by_image(truth, wanted)
    covered = set() if truth is None else {image["id"] for image in truth["images"]}
    cards = [
        _card(
            image,
            [each.get(image["id"], []) for each in found],
            true.get(image["id"], []) if image["id"] in covered else None,
            load_image,
        )
        for image in chosen
    ]
    common = about(run)
    return common | {
        "stage": "compare",
        "facts": _facts(comparison, result, len(common["failures"]) + common["failures_left_out"]),
        "rows": _rows(methods),
        "groups": _groups(methods),
        "slowest": max((method["ms"]["total"] for method in methods), default=0) or 1,
        "first": methods[0]["name"],
        "truth": comparison["truth"],
        "notes": [f"Left out: {name}. {reason}" for name, reason in comparison["left_out"].items()],
        "timing": timing(result.get("stage_seconds") or {}),
        "cards": cards,
        "images": len(images),
        "data": {
            "methods": [{"name": method["name"], "baseline": method["baseline"]} for method in methods],
            "images": [card["data"] for card in cards],
        },
    }


# One image and what each method found in it.


def _card(
    image: dict[str, Any],
    found: Sequence[list[dict[str, Any]]],
    true: list[dict[str, Any]] | None,
    load_image: Callable[[str], np.ndarray],
) -> dict[str, Any]:
    """One image as the page shows it; ``picture`` is a data URI, or ``None`` with the reason in ``problem``."""
    rows, columns = thumbnail_size((image["height"], image["width"]))
    thumbnail, problem = picture(image, load_image)
    surest = [_surest_mask(annotations, image) for annotations in found]
    return {
        "name": image["file_name"],
        "picture": thumbnail,
        "problem": problem,
        "data": {
            "name": image["file_name"],
            "size": [image["width"], image["height"]],
            "thumbnail": [columns, rows],
            "found": [[instance(each, image) for each in annotations] for annotations in found],
            "truth": None if true is None else [instance(each, image) for each in true],
            "iou": _true_ious(surest, true, image),
            "agreement": [round(_iou(left, right), 3) for left, right in combinations(surest, 2)],
        },
    }


def _surest_mask(annotations: list[dict[str, Any]], image: dict[str, Any]) -> Bool[np.ndarray, "h w"]:
    """The mask of the surest instance at the size of the thumbnail; nothing where nothing was found."""
    if annotations:
        mask = thumbnail_mask(max(annotations, key=lambda each: score_of(each) or 0.0), image)
        if mask is not None:
            return mask
    return np.zeros(thumbnail_size((image["height"], image["width"])), dtype=bool)


def _true_ious(
    surest: Sequence[Bool[np.ndarray, "h w"]], true: list[dict[str, Any]] | None, image: dict[str, Any]
) -> list[float] | None:
    """IoU of each surest mask with all true masks together; ``None`` where there is no true mask."""
    masks = [mask for each in true or [] if (mask := thumbnail_mask(each, image)) is not None]
    if not masks:
        return None
    foreground = np.logical_or.reduce(masks)
    return [round(_iou(mask, foreground), 3) for mask in surest]


def _iou(left: Bool[np.ndarray, "h w"], right: Bool[np.ndarray, "h w"]) -> float:
    """Two that found nothing agree."""
    union = int((left | right).sum())
    return int((left & right).sum()) / union if union else 1.0


# The comparison as a whole.


def _facts(comparison: dict[str, Any], result: dict[str, Any], failures: int) -> list[tuple[str, str, str]]:
    facts = [("images", f"{comparison['images']:,}", ""), ("methods", f"{len(comparison['methods']):,}", "")]
    if truth := comparison["truth"]:
        remark = "" if truth["images"] == comparison["images"] else f"in {truth['images']:,} images"
        facts.append(("true objects", f"{truth['objects']:,}", remark))
    if resumed := result.get("resumed"):
        facts.append(("resumed", f"{resumed:,}", "done before"))
    facts.append(("failed", f"{failures:,}", ""))
    if (seconds := result.get("seconds")) is not None:
        speed = result.get("images_per_s")
        facts.append(("time", duration(seconds), f"{speed:,.2g} images/s, all methods" if speed else ""))
    return facts


def _groups(methods: list[dict[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Heads of the columns of measures: group, then title and meaning of each."""
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    for name, (group, title, meaning) in MEASURES.items():
        if name in methods[0].get("measures", {}):
            if not groups or groups[-1][0] != group:
                groups.append((group, []))
            groups[-1][1].append((title, meaning))
    return groups


def _rows(methods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a method, with the best of each column marked."""
    shown = [name for name in MEASURES if name in methods[0].get("measures", {})]
    values = {name: [method["measures"][name]["value"] for method in methods] for name in shown}
    best = {
        name: max((value for value in column if value is not None), default=None) for name, column in values.items()
    }
    return [
        {**method, "cells": [_cell(method["measures"][name], best[name], methods[0]["name"]) for name in shown]}
        for method in methods
    ]


def _cell(measure: dict[str, Any], best: float | None, first: str) -> dict[str, Any]:
    value = measure["value"]
    if value is None:
        return {"value": None, "interval": None, "best": False, "sign": "", "note": "The truth has no such object."}
    cell = {"value": f"{value:.1f}", "interval": None, "best": 0 < value == best, "sign": "", "note": ""}
    if measure["low"] is not None:
        cell["interval"] = [f"{measure[end]:.1f}" for end in ("low", "high")]
    if (difference := measure.get("difference")) is not None:
        cell["note"] = f"{difference:+.1f} against {first}"
        if (low := measure["difference_low"]) is not None:
            high = measure["difference_high"]
            cell["note"] += f" ({low:+.1f} to {high:+.1f})"
            cell["sign"] = "above" if low > 0 else "below" if high < 0 else ""
    return cell


# Files.


def _by_image(content: dict[str, Any], wanted: set[int]) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        if annotation["image_id"] in wanted:
            grouped.setdefault(annotation["image_id"], []).append(annotation)
    return grouped


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content is None:
        raise RunError(
            f"{path} is missing, so there is nothing to show.",
            "Run the stage to its end (the same command goes on where it stopped), then write the report again.",
        )
    return content
