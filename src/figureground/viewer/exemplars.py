"""The report of a pool of exemplars: one self-contained page with a contact sheet of each hidden category."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figureground.viewer.page import about, duration, read_json, timing, write_page


@dataclass(frozen=True, slots=True)
class ExemplarSheet:
    """A hidden category as the page shows it.

    Attributes:
        name: Of its folder.
        count: Its exemplars.
        agreement: Mean cosine of these and their pivot.
        nearest: The category whose pivot is most like its own, and their cosine; ``None`` where it is the only one.
        crops: Of some of its exemplars, as :func:`figureground.viewer.crop` makes them, and the names of their files.
    """

    name: str
    count: int
    agreement: float
    nearest: tuple[str, float] | None
    crops: Sequence[tuple[str, str]]


def write_exemplars(pool: Path, sheets: Sequence[ExemplarSheet]) -> Path:
    """Write ``report.html`` from what a pool holds.

    Args:
        pool: A directory with ``result.json`` and, where they exist, ``environment.json``, ``config.json`` and
            ``failures.jsonl``.
        sheets: The categories.

    Returns:
        The path of the report.

    Raises:
        RunError: If a file of the pool cannot be understood, or the report cannot be written.
    """
    result = read_json(pool / "result.json") or {}
    silhouettes = result.get("silhouettes") or {}
    best = max(silhouettes.values(), default=None)
    context = about(pool) | {
        "stage": "exemplars",
        "facts": _facts(result),
        "timing": timing(result.get("stage_seconds") or {}),
        "backbone": result.get("backbone"),
        "silhouettes": [(k, f"{value:.3f}", value == best) for k, value in silhouettes.items()],
        "sheets": sheets,
        "data": None,
    }
    return write_page(pool / "report.html", "exemplars", context)


def _facts(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    changes = [f"{result[key]:,} {key}" for key in ("added", "removed") if result.get(key)]
    facts = [
        ("categories", f"{result.get('categories', 0):,}", ""),
        ("exemplars", f"{result.get('exemplars', 0):,}", ", ".join(changes) + " by hand" if changes else ""),
        ("images", f"{result.get('images', 0):,}", "looked at"),
        ("failed", f"{result.get('failed', 0):,}", ""),
    ]
    if (seconds := result.get("seconds")) is not None:
        facts.append(("time", duration(seconds), "this start"))
    return facts
