"""The report of a training: one self-contained page with its curves, what was learned from, and what is found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from figureground.storage import jsonlines
from figureground.viewer.page import about, duration, read_json, timing, write_page
from figureground.viewer.pictures import instance, picture, thumbnail_size

# An image, its annotations (a COCO file's, before ids are given out), and its pixels.
Picture = tuple[Mapping[str, Any], UInt8[np.ndarray, "_ _ 3"]]

# Most points of a curve; of more steps, the mean of as many that follow each other.
POINTS = 120
# Found instances that are shown: those that score so much, or else the surest.
_SURE = 0.5
WIDTH, HEIGHT = 300, 80


def write_training(run: Path, examples: Sequence[Picture], found: Sequence[Picture]) -> Path:
    """Write ``report.html`` from what the run of a training holds.

    Args:
        run: A directory with ``log.jsonl`` and, where they exist, ``result.json``, ``environment.json``,
            ``config.json`` and ``failures.jsonl``.
        examples: Images as they were learned from.
        found: Images with what the detector finds in them.

    Returns:
        The path of the report.

    Raises:
        RunError: If a file of the run cannot be understood, or the report cannot be written.
    """
    result = read_json(run / "result.json") or {}
    steps = [entry for entry in jsonlines.read(run / "log.jsonl") if "step" in entry]
    spent = _seconds(steps, (read_json(run / "config.json") or {}).get("batch_size", 0))
    strips = [
        ("Learned from", [_card(*each) for each in examples]),
        ("Found", [_card(_sure(annotations), pixels) for annotations, pixels in found]),
    ]
    context = about(run) | {
        "stage": result.get("stage"),
        "facts": _facts(result, *spent),
        "timing": timing({"batches": spent[0], "steps": spent[1]}),
        "groups": curve_groups(steps),
        "width": WIDTH,
        "height": HEIGHT,
        "strips": strips,
        "data": [card["data"] for _, cards in strips for card in cards],
    }
    return write_page(run / "report.html", "training", context)


def _facts(result: dict[str, Any], waited: float, worked: float) -> list[tuple[str, str, str]]:
    facts = [(key, f"{result.get(key, 0):,}", "") for key in ("steps", "images")]
    for key, remark in (("rejected", "masks"), ("skipped", "steps")):
        if number := result.get(key):
            facts.append((key, f"{number:,}", remark))
    facts.append(("failed", f"{result.get('failed', 0):,}", ""))
    if seconds := waited + worked:
        facts.append(("time", duration(seconds), f"{seconds / max(result.get('steps', 1), 1):.2g} s a step"))
    return facts


def _seconds(steps: list[dict[str, Any]], batch_size: int) -> tuple[float, float]:
    """How long steps waited for their batches, and how long they took beyond that, over all starts."""
    waited = sum(entry.get("data_s", 0.0) for entry in steps)
    whole = sum(batch_size / entry["images_per_s"] for entry in steps if entry.get("images_per_s"))
    return waited, max(whole - waited, 0.0)


def curve_groups(steps: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Curves under titles."""
    numbers: dict[str, dict[str, list[tuple[int, float]]]] = {"Losses": {}, "Measured, %": {}, "Steps": {}}

    def add(group: str, name: str, entry: dict[str, Any], value: float | None) -> None:
        if value is not None:
            numbers[group].setdefault(name, []).append((entry["step"] + 1, value))

    for entry in steps:
        if "losses" in entry:
            add("Losses", "all", entry, entry.get("loss"))
        for name, value in entry.get("losses", {}).items():
            add("Losses", name.replace("_", " "), entry, value)
        for name, value in entry.get("watch", {}).items():
            add("Measured, %", name.replace("_", " "), entry, None if value is None else 100 * value)
        for name in ("rate", "gradient_norm"):
            add("Steps", name.replace("_", " "), entry, entry.get(name))
    last = max((entry["step"] + 1 for entry in steps), default=1)
    return [
        (title, [_curve(name, points, last) for name, points in curves.items()])
        for title, curves in numbers.items()
        if curves
    ]


def _curve(name: str, points: list[tuple[int, float]], last: int) -> dict[str, Any]:
    """A polyline in a box of fixed size, from step 0 to the last and from 0 to the highest value."""
    parts = np.array_split(np.array(points, dtype=np.float64), min(len(points), POINTS))
    means = np.stack([part.mean(0) for part in parts])
    highest = float(means[:, 1].max())
    scale = np.array([WIDTH / last, HEIGHT / highest if highest > 0 else 0.0])
    places = means * scale
    return {
        "name": name,
        "line": " ".join(f"{x:.1f},{max(HEIGHT - y, 0):.1f}" for x, y in places),
        "value": _short(float(means[-1, 1])),
        "highest": _short(highest),
        "steps": f"{last:,}",
    }


def _short(value: float) -> str:
    return f"{value:.3g}"


def _sure(annotations: Mapping[str, Any]) -> dict[str, Any]:
    ranked = annotations["annotations"]
    return {**annotations, "annotations": [each for each in ranked if each["score"] >= _SURE] or ranked[:1]}


def _card(annotations: Mapping[str, Any], pixels: UInt8[np.ndarray, "_ _ 3"]) -> dict[str, Any]:
    rows, columns = thumbnail_size((annotations["height"], annotations["width"]))
    thumbnail, problem = picture(dict(annotations), lambda _: pixels)
    instances = [
        instance({"id": number, **each}, dict(annotations))
        for number, each in enumerate(annotations["annotations"], start=1)
    ]
    return {
        "name": annotations["file_name"],
        "picture": thumbnail,
        "problem": problem,
        "data": {"thumbnail": [columns, rows], "instances": instances},
    }
