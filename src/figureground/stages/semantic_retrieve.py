"""`figureground semantic retrieve`: each segment gets the class of its nearest neighbour among labelled ones."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8
from pydantic import Field, field_validator

from figureground.config import build, requested
from figureground.data.images import decode
from figureground.data.semantic_truth import BACKGROUND, NO_CLASS, SemanticTruth
from figureground.errors import ImageError, UsageError
from figureground.evaluation.semantic_miou import ImageConfusions, semantic_scores
from figureground.runners import Runner, run_serial
from figureground.stages.result import Progress
from figureground.stages.semantic_features import (
    Side,
    check_same_classes,
    embedding_name,
    open_truth,
    opened_run,
    prepare_looks,
    sweep_all,
)
from figureground.stages.semantic_report import (
    SemanticResult,
    absent_note,
    check_some,
    failures_of,
    make_cards,
    mean_iou,
    write_maps,
    write_page,
    write_result,
)
from figureground.stages.semantic_segments import SegmentConfig, Segmenting, Segments, gather_segments
from figureground.stages.sharding import Sweep
from figureground.viewer import crop, spread
from figureground.viewer.semantic import Query

# Segments that are compared with all others at once.
_BATCH = 1024


class SemanticRetrieveConfig(SegmentConfig):
    """Everything that decides what `semantic retrieve` writes."""

    train: str = Field(default="", description="Truth of the images whose segments are found: as `val`.")
    train_images: str | None = Field(default=None, description="Folder of its images; none: as the truth says.")
    neighbours: int = Field(
        default=1, ge=1, le=1000, description="Nearest segments whose commonest class counts (MaskContrast: 1)."
    )
    only: tuple[str, ...] = Field(
        default=(),
        description="Classes that are looked for and measured, with the background; pixels and segments of others "
        "do not count; none: all (MaskContrast: 7 or all of PASCAL's).",
    )
    resamples: int = Field(default=1000, ge=0, le=100_000, description="Of the bootstrap over images; 0: no interval.")
    queries: int = Field(default=40, ge=0, le=1000, description="Segments on the page, with their neighbours.")
    shown: int = Field(default=8, ge=1, le=50, description="Neighbours of each on the page.")
    pictures: int = Field(default=24, ge=0, le=1000, description="Images on the page.")

    @field_validator("train", "train_images")
    @classmethod
    def _absolute_train(cls, path: str | None) -> str | None:
        return os.path.abspath(os.path.expanduser(path)) if path else path


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticRetrieveResult(SemanticResult):
    """What was made.

    Attributes:
        segments: In the measured images.
        gallery: Segments with a class that were looked through.
        right: Of the measured segments that have a class, the share whose neighbour has it, in per cent.
    """

    segments: int
    gallery: int
    right: float | None


def configure(assignments: Sequence[str] = (), **shorthands: Any) -> SemanticRetrieveConfig:
    """The configuration a command line asks for: ``--set``, and the shorthands over it.

    Args:
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
    """
    return build(SemanticRetrieveConfig, requested(assignments, shorthands))


def run(
    config: SemanticRetrieveConfig,
    out: Path,
    runner: Runner = run_serial,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SemanticRetrieveResult:
    """Give each segment of the measured images the class of the labelled segment that is nearest to it.

    Can be killed at any time and called again.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        runner: What applies the work to the shards.
        progress: Called after every image and once before the first.

    Raises:
        UsageError: If there is no truth, it has other classes than the other one, no segment has a class, or a file is
            wrong.
        ConfigError: If ``out`` holds a run with another configuration or of other masks.
        RunError: If the folder cannot be written or another process is writing it.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 4.3, and the published code. Deviates: a labelled segment has the class
        of most of its pixels, the background's left out, and none where there are no others; measured at the images'
        own sizes.
    """
    start = time.perf_counter()
    # Before the folder is made: a wrong name or missing weights leave nothing behind.
    train, val = open_truth(config, "train"), open_truth(config, "val")
    check_same_classes(train, val)
    if unknown := sorted(set(config.only) - set(val.classes)):
        raise UsageError(f"`only` names {unknown[0]!r}, but the classes are {', '.join(val.classes)}.")
    sides: dict[Side, Any] = {
        "train": (train.images, partial(Segmenting, side="train", counted=True)),
        "val": (val.images, partial(Segmenting, side="val", counted=True)),
    }
    config, looks = prepare_looks(config, sides, runner)
    with opened_run(out, config, list(looks)):
        sweeps = sweep_all(looks, out, config.shard_size, runner, progress)
        result = _Retrieval(config, train, val, sweeps).write(out, start)
        sweeps["val"].log("end", seconds=result.seconds)
    return result


class _Retrieval:
    """Finds neighbours and measures."""

    def __init__(
        self, config: SemanticRetrieveConfig, train: SemanticTruth, val: SemanticTruth, sweeps: dict[str, Sweep]
    ) -> None:
        self.config, self.truths, self.sweeps = config, {"train": train, "val": val}, sweeps
        self.classes = len(val.classes)
        self.segments = {name: gather_segments(sweep, self.classes) for name, sweep in sweeps.items()}
        found = self.segments["val"]
        check_some(found.files, sweeps["val"])
        kept = np.array([not config.only or name in (*config.only, BACKGROUND) for name in val.classes])
        self.counts, self.ground = found.counts * kept, found.ground * kept
        objects = kept.copy()
        if val.background is not None:
            objects[val.background] = False
        labelled = self.segments["train"].counts * objects
        # Places of the segments that have a class, and the class of each.
        self.gallery = np.flatnonzero(labelled.any(1))
        self.labels = labelled[self.gallery].argmax(1)
        if not len(self.gallery):
            raise UsageError(
                f"None of the {len(labelled)} segments of the training images has a class by {train.path}.",
                "Look at the masks or the saliency, or choose another foreground: --set foreground=label.",
            )
        most = min(len(self.gallery), max(config.neighbours, config.shown))
        self.nearest = nearest(found.vectors, self.segments["train"].vectors[self.gallery], most)
        self.predicted = vote(self.labels[self.nearest[:, : config.neighbours]])

    def write(self, out: Path, start: float) -> SemanticRetrieveResult:
        """Write maps, result and report."""
        found, truth = self.segments["val"], self.truths["val"]
        write_maps(out, found.files, self._map)
        places, rest = np.arange(len(found.files)), self.classes if truth.background is None else truth.background
        # A row more than there are classes: what is no segment, where that is no class.
        confusions = ImageConfusions(len(found.files), self.classes + 1, self.classes)
        confusions.add(found.images, self.predicted, self.counts)
        confusions.add(places, np.full_like(places, rest), self.ground)
        matched = (*range(self.classes), None)
        scores = semantic_scores(confusions.total(), matched)
        measured = [(confusions, matched)]
        known = self.counts.any(1)
        right = self.predicted[known] == self.counts[known].argmax(1)
        result = SemanticRetrieveResult(
            out=out,
            report=out / "report.html",
            images=len(found.files),
            miou=mean_iou(measured, scores.miou, len(found.files), self.config.resamples),
            per_class={
                name: None if value is None else round(100 * value, 3)
                for name, value in zip(truth.classes, scores.per_class, strict=True)
            },
            notes=self._notes(confusions),
            failed=len(failures_of(self.sweeps)),
            resumed=sum(sweep.total - sweep.fresh for sweep in self.sweeps.values()),
            seconds=round(time.perf_counter() - start, 3),
            segments=len(found.images),
            gallery=len(self.gallery),
            right=round(100 * float(right.mean()), 3) if len(right) else None,
        )
        write_result("semantic retrieve", result, self.sweeps)
        facts = [
            ("segments", f"{result.segments:,}", f"in {result.images:,} images"),
            ("looked through", f"{result.gallery:,}", "labelled segments"),
        ]
        if result.right is not None:
            facts.append(("right", f"{result.right:.1f} %", "of the segments"))
        cards = make_cards(truth, found.files, self.config.pictures, self._map)
        write_page("semantic retrieve", result, truth, facts, cards=cards, queries=list(self._queries()))
        return result

    def _map(self, place: int) -> UInt8[np.ndarray, "H W"]:
        found = self.segments["val"]
        record, background = found.files[place], self.truths["val"].background
        ground = NO_CLASS if background is None else background
        painted = np.full((record["height"], record["width"]), ground, dtype=np.uint8)
        for mask, number in zip(found.masks(place), self.predicted[found.images == place], strict=True):
            painted[mask] = number
        return painted

    def _notes(self, confusions: ImageConfusions) -> tuple[str, ...]:
        notes = [
            f"Nearest by the angle of {embedding_name(self.config)}; {self.config.neighbours} "
            f"{'neighbour decides' if self.config.neighbours == 1 else 'neighbours vote'}."
        ]
        if self.config.only:
            notes.append(f"Only {', '.join(self.config.only)} are looked for and measured.")
        pixels = confusions.total().sum(0)
        held = np.bincount(self.labels, minlength=self.classes)
        missing = [
            name for name, has, true in zip(self.truths["val"].classes, held, pixels, strict=True) if true and not has
        ]
        missing = [name for name in missing if name != "background"]
        if missing:
            notes.append(f"No labelled segment is {', '.join(missing)}: it cannot be found.")
        return (*notes, *absent_note(self.truths["val"], pixels.tolist()))

    def _queries(self) -> Iterator[Query]:
        """Some segments and their neighbours as the page shows them."""
        names = self.truths["val"].classes
        for query in spread(len(self.predicted), self.config.queries) if self.config.queries else []:
            known = self.counts[query].any()
            true = int(self.counts[query].argmax()) if known else None
            shown = self._crop("val", query)
            neighbours = [
                (*cut, names[self.labels[near]], bool(self.labels[near] == true))
                for near in self.nearest[query, : self.config.shown]
                if (cut := self._crop("train", int(self.gallery[near]))) is not None
            ]
            if shown is not None:
                yield Query(*shown, None if true is None else names[true], neighbours)

    def _crop(self, side: Side, segment: int) -> tuple[str, str] | None:
        """A segment and the name of its image; ``None`` where the file has gone, or the segment lies under others."""
        found: Segments = self.segments[side]
        place = int(found.images[segment])
        name = found.files[place]["file_name"]
        mask = found.masks(place)[segment - int(np.searchsorted(found.images, place))]
        try:
            pixels, _ = decode(self.truths[side].images.path(name))
        except ImageError:
            return None
        return (crop(pixels, mask), name) if mask.any() and mask.shape == pixels.shape[:2] else None


def nearest(
    queries: Float[np.ndarray, "M D"], gallery: Float[np.ndarray, "N D"], most: int
) -> Int64[np.ndarray, "M most"]:
    """Places in the gallery of those nearest by angle, the nearest first; of equally near ones the first."""
    found = [np.zeros((0, most), dtype=np.int64)]
    for first in range(0, len(queries), _BATCH):
        alike = queries[first : first + _BATCH] @ gallery.T
        found.append(np.argsort(-alike, axis=1, kind="stable")[:, :most])
    return np.concatenate(found)


def vote(labels: Int64[np.ndarray, "M k"]) -> Int64[np.ndarray, "M"]:
    """The commonest label of each row; of several as common that which stands first."""
    winners = np.zeros(len(labels), dtype=np.int64)
    for index, row in enumerate(labels):
        counts = np.bincount(row)
        winners[index] = row[(counts[row] == counts.max()).argmax()]
    return winners
