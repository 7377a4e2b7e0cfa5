"""The report of clusters: one self-contained page with a contact sheet of each, to name it or drop it by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from figureground.viewer.page import about, duration, read_json, timing, write_page
from figureground.viewer.pictures import data_uri

CROP_SIDE = 112
"""Longest side of a crop on the page, in pixels."""
_MARGIN = 0.15
_FADED = 0.65


@dataclass(frozen=True, slots=True)
class Sheet:
    """A cluster as the page shows it.

    Attributes:
        id: Its number.
        name: Given by a person; ``None`` where there is none yet.
        dropped: Whether a person has dropped it.
        count: Its instances.
        majority: The commonest class of its instances and how common it is, where the truth is known.
        crops: Of some of its instances, as :func:`crop` makes them, and the names of their images; the nearest to the
            centre first.
    """

    id: int
    name: str | None
    dropped: bool
    count: int
    majority: tuple[str, float] | None
    crops: Sequence[tuple[str, str]]


def crop(pixels: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> str:
    """An instance with a little of what is around it, that faded, as a data URI.

    Args:
        pixels: The image.
        mask: Not empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    ranges = []
    for places, most in ((rows, len(mask)), (columns, mask.shape[1])):
        low, high = int(places[0]), int(places[-1]) + 1
        margin = max(2, round((high - low) * _MARGIN))
        ranges.append(slice(max(0, low - margin), min(most, high + margin)))
    part, inside = pixels[ranges[0], ranges[1]], mask[ranges[0], ranges[1], None]
    shown = np.where(inside, part, np.rint(part * (1 - _FADED) + 255 * _FADED)).astype(np.uint8)
    scale = CROP_SIDE / max(inside.shape[:2])
    return data_uri(shown, (max(1, round(shown.shape[0] * scale)), max(1, round(shown.shape[1] * scale))))


def write_clusters(run: Path, sheets: Sequence[Sheet]) -> Path:
    """Write ``report.html`` from what the run of `cluster` holds.

    Args:
        run: A directory with ``result.json`` and, where they exist, ``environment.json``, ``config.json`` and
            ``failures.jsonl``.
        sheets: The clusters, the largest first.

    Returns:
        The path of the report.

    Raises:
        RunError: If a file of the run cannot be understood, or the report cannot be written.
    """
    result = read_json(run / "result.json") or {}
    silhouettes = result.get("silhouettes") or {}
    best = max(silhouettes.values(), default=None)
    context = about(run) | {
        "stage": "cluster",
        "facts": _facts(result, sheets),
        "timing": timing(result.get("stage_seconds") or {}),
        "silhouettes": [(k, f"{value:.3f}", value == best) for k, value in silhouettes.items()],
        "sheets": sheets,
        "whole": sum(sheet.count for sheet in sheets) or 1,
        "data": None,
    }
    return write_page(run / "report.html", "clusters", context)


def _facts(result: dict[str, Any], sheets: Sequence[Sheet]) -> list[tuple[str, str, str]]:
    dropped = sum(sheet.dropped for sheet in sheets)
    facts = [
        ("clusters", f"{len(sheets):,}", f"{dropped:,} dropped" if dropped else ""),
        ("objects", f"{sum(sheet.count for sheet in sheets):,}", f"in {result.get('images', 0):,} images"),
    ]
    if measured := result.get("measured"):
        remark = f"of {measured['matched']:,} objects that are in the truth"
        facts += [("purity", f"{measured['purity']:.1f} %", remark), ("NMI", f"{measured['nmi']:.1f} %", "")]
    facts.append(("failed", f"{result.get('failed', 0):,}", ""))
    if (seconds := result.get("seconds")) is not None:
        facts.append(("time", duration(seconds), "this start"))
    return facts
