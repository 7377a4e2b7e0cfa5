"""The report of a run: one self-contained page with every image, its masks and what was done."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from figureground.data.annotation_file import find_annotations, open_annotations
from figureground.data.categories import read_categories
from figureground.errors import RunError, UsageError
from figureground.viewer.page import about, duration, read_json, spread, timing, write_page
from figureground.viewer.pictures import instance, picture, score_of, thumbnail_size

BARS = 20
"""Most bars in a histogram."""


def write_report(run: Path, *, load_image: Callable[[str], np.ndarray], max_images: int = 200, sure: float = 0) -> Path:
    """Write ``report.html`` from what a run directory holds.

    The page needs nothing but itself: images, style and script are inside.

    Args:
        run: A directory with ``annotations.json`` (or ``.parquet``) and, where they exist, ``result.json``,
            ``environment.json``, ``config.json`` and ``failures.jsonl``.
        load_image: Reads one image as uint8 RGB of shape (H, W, 3), EXIF orientation applied, given its ``path`` in the
            annotations, or its ``file_name`` where they have no path; at full size, or at a half, a quarter or an
            eighth of it. An image for which it raises FiguregroundError, OSError or ValueError becomes a card that
            says so.
        max_images: Images on the page; of a longer run, as many spread evenly over it.
        sure: Instances of a lower score are hidden until asked for; if all are lower, none are.

    Returns:
        The path of the report.

    Raises:
        RunError: If ``annotations.json`` is missing, a file of the run cannot be understood, or the report cannot be
            written.
    """
    return write_page(run / "report.html", "report", _gather(run, load_image, max_images, sure))


@dataclass(frozen=True, slots=True)
class _Found:
    """What the page shows of all images, and the few that it shows themselves.

    Attributes:
        counts: Instances of each image, in no order.
        scores: Of the instances that have one.
        chosen: Images with their instances.
        kinds: Names of the categories; of a single one there is nothing to say.
    """

    counts: np.ndarray
    scores: np.ndarray
    chosen: list[tuple[dict[str, Any], list[dict[str, Any]]]]
    kinds: dict[int, str]


def _gather(run: Path, load_image: Callable[[str], np.ndarray], max_images: int, sure: float) -> dict[str, Any]:
    """Everything the template shows."""
    found = _read_annotations(run, max_images)
    result = read_json(run / "result.json") or {}
    common = about(run)
    cards = [_card(image, instances, load_image, found.kinds) for image, instances in found.chosen]
    return common | {
        "stage": result.get("stage"),
        "facts": _facts(result, found.counts, len(common["failures"]) + common["failures_left_out"]),
        "timing": timing(result.get("stage_seconds") or {}),
        "cards": cards,
        "images": len(found.counts),
        "sure": sure if found.scores.max(initial=0) >= sure else 0,
        "score_bars": _score_bars(found.scores),
        "count_bars": _count_bars(found.counts),
        "data": [card["data"] for card in cards],
    }


def _card(
    image: dict[str, Any],
    instances: list[dict[str, Any]],
    load_image: Callable[[str], np.ndarray],
    kinds: dict[int, str],
) -> dict[str, Any]:
    """One image as the page shows it; ``picture`` is a data URI, or ``None`` with the reason in ``problem``."""
    rows, columns = thumbnail_size((image["height"], image["width"]))
    thumbnail, problem = picture(image, load_image)
    return {
        "name": image["file_name"],
        "picture": thumbnail,
        "problem": problem,
        "data": {
            "name": image["file_name"],
            "size": [image["width"], image["height"]],
            "thumbnail": [columns, rows],
            "instances": [
                instance(each, image) | {"kind": kinds.get(each.get("category_id", 0))} for each in instances
            ],
        },
    }


def _facts(result: dict[str, Any], counts: np.ndarray, failures: int) -> list[tuple[str, str, str]]:
    """What was found: name, number and, where it needs one, a remark."""
    total, images = int(counts.sum()), len(counts)
    facts = [
        ("images", f"{images:,}", ""),
        ("objects", f"{total:,}", f"{total / images:.1f} an image" if images else ""),
    ]
    if empty := images - np.count_nonzero(counts):
        facts.append(("without objects", f"{empty:,}", f"{empty / images:.0%} of the images"))
    for key, remark in (("skipped", ""), ("resumed", "done before"), ("ignored", "not images")):
        if number := result.get(key):
            facts.append((key, f"{number:,}", remark))
    facts.append(("failed", f"{result.get('failed') or failures:,}", ""))
    if (seconds := result.get("seconds")) is not None:
        speed = result.get("images_per_s")
        facts.append(("time", duration(seconds), f"{speed:,.2g} images/s" if speed else ""))
    return facts


def _score_bars(scores: np.ndarray) -> list[dict[str, Any]]:
    """Histogram of the scores."""
    return _bars(scores, np.arange(BARS + 1) / BARS, lambda low, high: f"{low:.2f} to {high:.2f}")


def _count_bars(counts: np.ndarray) -> list[dict[str, Any]]:
    """Histogram of the objects per image: as narrow as BARS bars allow."""
    most = int(counts.max(initial=0))
    step = most // BARS + 1
    edges = np.arange(0, most + step + 1, step).astype(float)
    return _bars(counts, edges, lambda low, high: f"{low:.0f}" if step == 1 else f"{low:.0f} to {high - 1:.0f}")


def _bars(
    values: np.ndarray, edges: Float[np.ndarray, "edges"], label: Callable[[float, float], str]
) -> list[dict[str, Any]]:
    """Each bar with its half-open range, its name, its count and its share of the highest."""
    if not len(values):
        return []
    counts = np.histogram(values, edges)[0].tolist()
    return [
        {"low": low, "high": high, "label": label(low, high), "count": count, "share": count / max(counts)}
        for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)
    ]


def _read_annotations(run: Path, most: int) -> _Found:
    """Go through the run's annotations, and keep those of at most so many images."""
    path = find_annotations(run)
    if path is None:
        raise RunError(
            f"{run} has no annotations.json, so there is nothing to show.",
            "Run the stage to its end (the same command goes on where it stopped), then write the report again.",
        )
    try:
        file = open_annotations(path)
        if not file.is_coco:
            raise RunError(f"{path} is not a COCO file: it needs the lists 'images' and 'annotations'.")
        kinds = read_categories(path)
        ids = [image["id"] for image in file.entries("images", stop=True)]
        places = set(spread(len(ids), most))
        listed = [image for place, image in enumerate(file.entries("images", stop=True)) if place in places]
        chosen: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in listed}
        owners, scores = array("q"), array("d")
        for annotation in file.entries("annotations"):
            owners.append(annotation["image_id"])
            if (score := score_of(annotation)) is not None:
                scores.append(score)
            if annotation["image_id"] in chosen:
                chosen[annotation["image_id"]].append(annotation)
    except UsageError as error:
        raise RunError(f"{error.message} It is not a COCO file.", "Remove it and run the stage again.") from error
    counts = np.zeros(len(ids), dtype=np.int64)
    filled, their_counts = np.unique(np.asarray(owners), return_counts=True)
    their_counts = their_counts[np.isin(filled, ids)]
    counts[: len(their_counts)] = their_counts
    pairs = [(image, chosen[image["id"]]) for image in listed]
    return _Found(counts, np.asarray(scores), pairs, kinds if len(kinds) > 1 else {})
