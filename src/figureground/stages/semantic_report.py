"""What `semantic cluster`, `probe` and `retrieve` say when they end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from figureground.data.images import decode
from figureground.data.semantic_truth import SemanticTruth
from figureground.errors import ImageError, RunError, UsageError
from figureground.evaluation.bootstrap import Estimate, estimate, resample
from figureground.evaluation.semantic_miou import ImageConfusions
from figureground.stages.sharding import Sweep
from figureground.storage import jsonlines
from figureground.storage.atomic import write_json
from figureground.viewer import spread
from figureground.viewer.palette import write_class_map
from figureground.viewer.semantic import Card, ClassRow, Query, card, write_semantic

# Of the bootstrap.
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticResult:
    """What was made.

    Attributes:
        out: The run's folder.
        report: The page to look at.
        images: Measured.
        miou: Mean IoU of the classes in per cent, with the 95 % interval over images.
        per_class: In per cent; ``None`` for a class neither in the truth nor predicted.
        notes: What a reader of the numbers has to know.
        failed: Images that could not be used; they are named in ``failures.jsonl``.
        resumed: Images that an earlier start had finished already.
        seconds: Wall-clock time of this start.
    """

    out: Path
    report: Path
    images: int
    miou: Estimate
    per_class: dict[str, float | None]
    notes: tuple[str, ...]
    failed: int
    resumed: int
    seconds: float


def mean_iou(
    confusions: Sequence[tuple[ImageConfusions, Sequence[int | None]]], value: float | None, images: int, resamples: int
) -> Estimate:
    """A mean IoU with its interval over images, in per cent; the mean of several that were measured on the same images.

    Args:
        confusions: Each with the class of each cluster.
        value: The mean itself, in [0, 1].
        images: How many there are.
        resamples: 0 gives no interval.

    Raises:
        UsageError: If there is none, since no pixel of the truth counts.
    """
    if value is None:
        raise UsageError("The truth has no pixel that counts: nothing can be measured.", "Is 255 all there is in it?")
    if not resamples:
        return Estimate(value).scaled(100)
    draws = resample(images, resamples, np.random.default_rng(_SEED))
    sampled = [each.resampled(draws, matched) for each, matched in confusions]
    return estimate(value, np.mean(sampled, axis=0)).scaled(100)


def check_some(files: Sequence[Any], sweep: Sweep) -> None:
    """Raise :class:`RunError` if not one of the images that are to be measured could be used."""
    if not files:
        failure = sweep.failures()[0]
        raise RunError(
            f"None of the images of the truth could be used. The first: {failure['path']}: {failure['error']}"
        )


def absent_note(truth: SemanticTruth, pixels: Sequence[int]) -> list[str]:
    """Say which classes the truth has no pixel of, if any."""
    absent = [name for name, count in zip(truth.classes, pixels, strict=True) if not count]
    return [f"No pixel of the truth is {', '.join(absent)}."] if absent else []


def write_maps(
    out: Path, files: Sequence[Mapping[str, Any]], predicted: Callable[[int], Integer[np.ndarray, "H W"]]
) -> None:
    """Write the class map of each image, as ``maps/NAME.png``."""
    for place, record in enumerate(files):
        write_class_map(map_path(out, record["file_name"]), predicted(place))


def map_path(out: Path, name: str) -> Path:
    """Where the class map of an image is."""
    return out / "maps" / PurePosixPath(name).with_suffix(".png")


def write_result(stage: str, result: SemanticResult, sweeps: Mapping[str, Sweep], **more: Any) -> None:
    """Write ``failures.jsonl`` and ``result.json``.

    Args:
        stage: Its name.
        result: All of it is written.
        sweeps: What the images were looked at by.
        more: Further facts.
    """
    jsonlines.write(result.out / "failures.jsonl", failures_of(sweeps))
    seconds: dict[str, float] = {}
    for sweep in sweeps.values():
        for part, spent in sweep.stage_seconds().items():
            seconds[part] = round(seconds.get(part, 0) + spent, 4)
    facts: dict[str, Any] = {
        field.name: getattr(result, field.name) for field in fields(result) if field.name not in ("out", "report")
    }
    facts["miou"] = {key: _rounded(getattr(result.miou, key)) for key in ("value", "low", "high")}
    write_json(result.out / "result.json", {"stage": stage, **facts, **more, "stage_seconds": seconds})


def failures_of(sweeps: Mapping[str, Sweep]) -> list[dict[str, str]]:
    """Path and error of each image that could not be used."""
    return [failure for sweep in sweeps.values() for failure in sweep.failures()]


def write_page(
    stage: str,
    result: SemanticResult,
    truth: SemanticTruth,
    facts: Sequence[tuple[str, str, str]],
    *,
    remarks: Mapping[int, str] | None = None,
    numbers: Sequence[tuple[str, str]] = (),
    cards: Sequence[Card] = (),
    queries: Sequence[Query] = (),
) -> None:
    """Write the report.

    Args:
        stage: Its name.
        result: What was measured.
        truth: Names the classes.
        facts: Large numbers beside the mean IoU.
        remarks: On classes, by number.
        numbers: Further ones.
        cards: Images.
        queries: Segments with their neighbours.
    """
    rows = []
    for number, name in enumerate(truth.classes):
        iou = result.per_class[name]
        rows.append(ClassRow(name, number, None if iou is None else iou / 100, (remarks or {}).get(number, "")))
    miou = ("mIoU", f"{result.miou.value:.1f} %", interval(result.miou))
    write_semantic(
        result.out, stage, [miou, *facts], rows, notes=result.notes, table=numbers, cards=cards, queries=queries
    )


def make_cards(
    truth: SemanticTruth,
    files: Sequence[Mapping[str, Any]],
    most: int,
    predicted: Callable[[int], UInt8[np.ndarray, "H W"]],
) -> list[Card]:
    """Some images as a page shows them, evenly spread; those that have gone since are left out.

    Args:
        truth: Of the images.
        files: Records of all.
        most: Images at most.
        predicted: From a place in ``files`` to the class of each pixel.
    """
    cards = []
    for place in spread(len(files), most) if most else []:
        name = files[place]["file_name"]
        try:
            pixels, size = decode(truth.images.path(name))
            true = truth.class_map(name, size)
        except ImageError:
            continue
        cards.append(card(name, pixels, predicted(place), true, len(truth.classes), truth.background))
    return cards


def interval(value: Estimate) -> str:
    """The 95 % interval in words.

    Example:
        >>> interval(Estimate(50.0, 45.04, 54.96))
        '45.0 to 55.0 (95 %)'
    """
    return "" if value.low is None or value.high is None else f"{value.low:.1f} to {value.high:.1f} (95 %)"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
