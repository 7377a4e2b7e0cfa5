"""The report of a run: one self-contained page with every image, its masks and what was done."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from figureground.errors import RunError
from figureground.viewer.page import about, duration, read_json, spread, timing, write_page
from figureground.viewer.pictures import instance, picture, score_of, thumbnail_size

BARS = 20
"""Most bars in a histogram."""


def write_report(run: Path, *, load_image: Callable[[str], np.ndarray], max_images: int = 200, sure: float = 0) -> Path:
    """Write ``report.html`` from what a run directory holds.

    The page needs nothing but itself: images, style and script are inside.

    Args:
        run: A directory with ``annotations.json`` and, where they exist, ``result.json``, ``environment.json``,
            ``config.json`` and ``failures.jsonl``.
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


def _gather(run: Path, load_image: Callable[[str], np.ndarray], max_images: int, sure: float) -> dict[str, Any]:
    """Everything the template shows."""
    annotations = _read_annotations(run)
    images = annotations["images"]
    instances_of = defaultdict(list)
    for annotation in annotations["annotations"]:
        instances_of[annotation["image_id"]].append(annotation)

    counts = [len(instances_of[image["id"]]) for image in images]
    scores = [score for each in annotations["annotations"] if (score := score_of(each)) is not None]
    result = read_json(run / "result.json") or {}
    common = about(run)
    chosen = [images[i] for i in spread(len(images), max_images)]
    cards = [_card(image, instances_of[image["id"]], load_image) for image in chosen]
    return common | {
        "stage": result.get("stage"),
        "facts": _facts(result, counts, len(common["failures"]) + common["failures_left_out"]),
        "timing": timing(result.get("stage_seconds") or {}),
        "cards": cards,
        "images": len(images),
        "sure": sure if max(scores, default=0) >= sure else 0,
        "score_bars": _score_bars(scores),
        "count_bars": _count_bars(counts),
        "data": [card["data"] for card in cards],
    }


def _card(
    image: dict[str, Any], instances: list[dict[str, Any]], load_image: Callable[[str], np.ndarray]
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
            "instances": [instance(each, image) for each in instances],
        },
    }


def _facts(result: dict[str, Any], counts: list[int], failures: int) -> list[tuple[str, str, str]]:
    """What was found: name, number and, where it needs one, a remark."""
    total, images = sum(counts), len(counts)
    facts = [
        ("images", f"{images:,}", ""),
        ("objects", f"{total:,}", f"{total / images:.1f} an image" if images else ""),
    ]
    if empty := counts.count(0):
        facts.append(("without objects", f"{empty:,}", f"{empty / images:.0%} of the images"))
    for key, remark in (("skipped", ""), ("resumed", "done before"), ("ignored", "not images")):
        if number := result.get(key):
            facts.append((key, f"{number:,}", remark))
    facts.append(("failed", f"{result.get('failed') or failures:,}", ""))
    if (seconds := result.get("seconds")) is not None:
        speed = result.get("images_per_s")
        facts.append(("time", duration(seconds), f"{speed:,.2g} images/s" if speed else ""))
    return facts


def _score_bars(scores: list[float]) -> list[dict[str, Any]]:
    """Histogram of the scores."""
    return _bars(scores, np.arange(BARS + 1) / BARS, lambda low, high: f"{low:.2f} to {high:.2f}")


def _count_bars(counts: list[int]) -> list[dict[str, Any]]:
    """Histogram of the objects per image: as narrow as BARS bars allow."""
    most = max(counts, default=0)
    step = most // BARS + 1
    edges = np.arange(0, most + step + 1, step).astype(float)
    return _bars(counts, edges, lambda low, high: f"{low:.0f}" if step == 1 else f"{low:.0f} to {high - 1:.0f}")


def _bars(
    values: list[float] | list[int], edges: Float[np.ndarray, "edges"], label: Callable[[float, float], str]
) -> list[dict[str, Any]]:
    """Each bar with its half-open range, its name, its count and its share of the highest."""
    if not values:
        return []
    counts = np.histogram(values, edges)[0].tolist()
    return [
        {"low": low, "high": high, "label": label(low, high), "count": count, "share": count / max(counts)}
        for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)
    ]


def _read_annotations(run: Path) -> dict[str, Any]:
    """The COCO file of the run."""
    path = run / "annotations.json"
    annotations = read_json(path)
    if annotations is None:
        raise RunError(
            f"{run} has no annotations.json, so there is nothing to show.",
            "Run the stage to its end (the same command goes on where it stopped), then write the report again.",
        )
    if not all(isinstance(annotations.get(key), list) for key in ("images", "annotations")):
        raise RunError(f"{path} is not a COCO file: it needs the lists 'images' and 'annotations'.")
    return annotations
