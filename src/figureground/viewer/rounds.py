"""The report of rounds of self-training: one self-contained page with what was found before and after each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from figureground.data.coco import ImageAnnotations
from figureground.storage import jsonlines
from figureground.viewer.comparison import MEASURES
from figureground.viewer.page import about, duration, read_json, write_page
from figureground.viewer.pictures import instance, picture, thumbnail_size
from figureground.viewer.training import HEIGHT, WIDTH, curve_groups

# The pixels of an image, and what was in it by the pseudo-labels and by each detector.
Row = tuple[UInt8[np.ndarray, "_ _ 3"], list[ImageAnnotations]]

_COUNTS = {
    "threshold": ("Score", "From which predictions become pseudo-labels"),
    "kept": ("Kept", "Older masks that stay"),
    "replaced": ("Replaced", "Older masks that a prediction overlaps"),
    "added": ("Added", "Predictions that are pseudo-labels now"),
    "unsure": ("Unsure", "Predictions below the score"),
    "repeated": ("Repeated", "Predictions that a surer one overlaps"),
    "images": ("Images", "With pseudo-labels, those without a mask included"),
    "new_images": ("New", "Images that had no entry before"),
}
_MEASURES = {
    key: MEASURES[key] for key in ("corloc", "box_ap50", "box_ap", "box_ar100", "mask_ap50", "mask_ap", "mask_ar100")
}


def write_rounds(run: Path, rows: Sequence[Row]) -> Path:
    """Write ``report.html`` from what the run of `self-train` or `learn` holds.

    Args:
        run: A directory with ``result.json``, the ``log.jsonl`` of the trainings it names and, where they exist,
            ``environment.json``, ``config.json`` and ``failures.jsonl``.
        rows: Images, each with the pseudo-labels to begin with and what each detector finds.

    Returns:
        The path of the report.

    Raises:
        RunError: If a file of the run cannot be understood, or the report cannot be written.
    """
    result = read_json(run / "result.json") or {}
    cards = [_card(*row) for row in rows]
    context = about(run) | {
        "stage": result.get("stage"),
        "facts": _facts(result),
        "timing": [],
        "heads": list(_COUNTS.values()),
        "rounds": [[_number(each[name]) for name in _COUNTS] for each in result.get("rounds", [])],
        **_measured(result.get("measured") or {}),
        "groups": _curves(run, result),
        "width": WIDTH,
        "height": HEIGHT,
        "cards": cards,
        "data": {
            "columns": ["Labels", *result.get("detectors", [])],
            "images": [card["data"] for card in cards],
        },
    }
    return write_page(run / "report.html", "rounds", context)


def _facts(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    facts = [("rounds", f"{len(result.get('rounds', [])):,}", "")]
    if (instances := result.get("instances")) is not None:
        facts = [("images", f"{result['images']:,}", ""), ("objects", f"{instances:,}", "labelled"), *facts]
    if resumed := result.get("resumed"):
        facts.append(("resumed", f"{resumed:,}", "steps done before"))
    facts.append(("failed", f"{result.get('failed', 0):,}", ""))
    if (seconds := result.get("seconds")) is not None:
        facts.append(("time", duration(seconds), "this start"))
    return facts


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _measured(measured: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """The table of measures: one row for the pseudo-labels and each detector, the best of a column marked."""
    shown = [name for name in _MEASURES if any(name in values for values in measured.values())]
    best = {
        name: max((value for each in measured.values() if (value := each.get(name)) is not None), default=None)
        for name in shown
    }
    rows = [
        (
            title,
            [
                (None, False) if (value := values.get(name)) is None else (f"{value:.1f}", 0 < value == best[name])
                for name in shown
            ],
        )
        for title, values in measured.items()
    ]
    return {"measures": [_MEASURES[name] for name in shown], "measured": rows}


def _curves(run: Path, result: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The losses of every training."""
    groups = []
    for training in result.get("trainings", []):
        steps = [entry for entry in jsonlines.read(run / training["folder"] / "log.jsonl") if "losses" in entry]
        groups += [(f"{title}: {training['title']}", curves) for title, curves in curve_groups(steps)[:1]]
    return groups


def _card(pixels: UInt8[np.ndarray, "_ _ 3"], columns: Sequence[ImageAnnotations]) -> dict[str, Any]:
    """One image as the page shows it; ``picture`` is a data URI, or ``None`` with the reason in ``problem``."""
    image = dict(columns[0])
    height, width = thumbnail_size((columns[0]["height"], columns[0]["width"]))
    thumbnail, problem = picture(image, lambda _: pixels)
    found = [
        [instance({"id": number, **each}, image) for number, each in enumerate(column["annotations"], start=1)]
        for column in columns
    ]
    return {
        "name": image["file_name"],
        "picture": thumbnail,
        "problem": problem,
        "data": {"thumbnail": [width, height], "found": found},
    }
