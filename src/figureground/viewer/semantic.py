"""The reports of semantic segmentation: numbers by class, predictions beside the truth, neighbours of segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from figureground.viewer.page import about, duration, read_json, timing, write_page
from figureground.viewer.palette import palette
from figureground.viewer.pictures import data_uri

SIDE = 300
"""Longest side of a picture on the page, in pixels."""
_COVER, _VEIL = 0.72, 0.75
_STRIPES = 8


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class as the page shows it.

    Attributes:
        name: Its name.
        number: In the maps.
        iou: In [0, 1]; ``None`` where it is neither in the truth nor predicted.
        remark: Which clusters stand for it.
    """

    name: str
    number: int
    iou: float | None
    remark: str = ""

    @property
    def colour(self) -> str:
        """As CSS has it."""
        return "#" + "".join(f"{value:02x}" for value in palette()[self.number].tolist())


@dataclass(frozen=True, slots=True)
class Card:
    """An image as the page shows it.

    Attributes:
        name: Of its file.
        pictures: Data URIs, each with what it is.
        classes: Numbers of those in it, by truth or prediction.
    """

    name: str
    pictures: Sequence[tuple[str, str]]
    classes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Query:
    """A segment and its nearest neighbours.

    Attributes:
        picture: A data URI.
        name: Of its image.
        true: Its class; ``None`` where no pixel of it counts.
        neighbours: Data URI, image, class, and whether that is right, the nearest first.
    """

    picture: str
    name: str
    true: str | None
    neighbours: Sequence[tuple[str, str, str, bool]]


def card(
    name: str,
    pixels: UInt8[np.ndarray, "H W 3"],
    predicted: Integer[np.ndarray, "H W"],
    true: Integer[np.ndarray, "H W"],
    classes: int,
    background: int | None,
) -> Card:
    """Make a card of an image, its prediction and its truth, which are of one size.

    Args:
        name: Of its file.
        pixels: RGB.
        predicted: The class of each pixel; numbers from ``classes`` on stand for none.
        true: Likewise.
        classes: How many there are.
        background: The one that is not coloured.
    """
    scale = min(1.0, SIDE / max(pixels.shape[:2]))
    size = max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale))
    small = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BOX))
    pictures = [("image", data_uri(small, size))]
    for title, numbers in (("prediction", predicted), ("truth", true)):
        shrunk = Image.fromarray(numbers.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
        pictures.append((title, data_uri(coloured(small, np.asarray(shrunk), classes, background), size)))
    there = np.union1d(np.unique(predicted), np.unique(true))
    return Card(name, pictures, [int(number) for number in there if number < classes and number != background])


def coloured(
    pixels: UInt8[np.ndarray, "H W 3"], numbers: Integer[np.ndarray, "H W"], classes: int, background: int | None
) -> UInt8[np.ndarray, "H W 3"]:
    """An image under its classes: background faded, what does not count white, what is no class striped."""
    grey = pixels.mean(2, keepdims=True)
    covered = grey * (1 - _COVER) + palette()[numbers] * _COVER
    faded = grey * (1 - _VEIL) + 235 * _VEIL
    rows, columns = np.indices(numbers.shape)
    stripes = np.where((rows + columns) // _STRIPES % 2, 90, 170)[..., None] * np.ones(3)
    shown = np.where((numbers >= classes)[..., None], stripes, covered)
    shown = np.where((numbers == 255)[..., None], 255, shown)
    if background is not None:
        shown = np.where((numbers == background)[..., None], faded, shown)
    return shown.round().astype(np.uint8)


def write_semantic(
    run: Path,
    stage: str,
    facts: Sequence[tuple[str, str, str]],
    rows: Sequence[ClassRow],
    *,
    notes: Sequence[str] = (),
    table: Sequence[tuple[str, str]] = (),
    cards: Sequence[Card] = (),
    queries: Sequence[Query] = (),
) -> Path:
    """Write ``report.html`` of a run of `semantic cluster`, `probe` or `retrieve`.

    Args:
        run: A directory with ``result.json`` and, where they exist, ``environment.json``, ``config.json`` and
            ``failures.jsonl``.
        stage: Its name.
        facts: Large numbers: what, how much, a remark.
        rows: The classes.
        notes: What to know about the numbers.
        table: Further numbers: what, and the value.
        cards: Images.
        queries: Segments with their neighbours.

    Returns:
        The path of the report.

    Raises:
        RunError: If a file of the run cannot be understood, or the report cannot be written.
    """
    result = read_json(run / "result.json") or {}
    context: dict[str, Any] = about(run) | {
        "stage": stage,
        "facts": [
            *facts,
            ("failed", f"{result.get('failed', 0):,}", ""),
            ("time", duration(result.get("seconds", 0)), "this start"),
        ],
        "timing": timing(result.get("stage_seconds") or {}),
        "rows": rows,
        "notes": notes,
        "numbers": table,
        "cards": cards,
        "queries": queries,
        "data": None,
    }
    return write_page(run / "report.html", "semantic", context)
