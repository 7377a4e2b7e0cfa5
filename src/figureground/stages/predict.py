"""`figureground predict`: a trained detector on photographs."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from figureground.config import Config, build, requested
from figureground.data.annotation_file import Format, check_format
from figureground.data.images import Size, decode
from figureground.data.listing import list_images
from figureground.errors import ImageError, RunError
from figureground.runners import Runner, run_serial
from figureground.stages.detecting import Finder, detector_file, digest_of, load_detector
from figureground.stages.labeller import check_device
from figureground.stages.result import Progress, StageResult
from figureground.stages.sharding import File, Record, Sweep, describe_run, opened, prepare, write_masks

# What may differ when a run goes on: where and how it computes, how much of the list it covers, and where the detector
# lies; which one it is, its digest tells.
_FREE = ("device", "limit", "format", "threads", "detector")
# The report begins with the instances that score at least so much.
_SURE = 0.5


class PredictConfig(Config):
    """Everything that decides what `predict` writes."""

    detector: str = Field(default="", description="Folder of a training, or a file of weights.")
    digest: str | None = Field(default=None, description="SHA-256 of the weights; filled in when they are read.")
    images: tuple[str, ...] = Field(default=(), description="Files and folders of images.")
    limit: int | None = Field(default=None, ge=1, description="Only the first images of the sorted list.")
    score_threshold: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Instances above are written: low, so that average precision and self-training can be computed "
        "from them; the report begins at 0.5 (CutLER: 0).",
    )
    max_detections: int | None = Field(
        default=None,
        ge=1,
        description="Instances an image at most; none: the detector's own (CutLER: 100; before self-training 30).",
    )
    nms: float | None = Field(
        default=None, gt=0, le=1, description="Overlap of instances at most; none: the detector's own (CutLER: 0.5)."
    )
    short_side: int | None = Field(
        default=None,
        ge=32,
        description="Side at which images are looked at, px; none: the detector's own (CutLER: 800).",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Of most of the arithmetic; bf16 is faster on processors and GPUs that have it."
    )
    batch_size: int = Field(default=4, ge=1, le=1024, description="Images at once; a shard is cut into such batches.")
    shard_size: int = Field(default=32, ge=1, le=10_000, description="Images a shard: what a kill can cost at most.")
    format: Format = Field(
        default="json", description="Of the annotations: COCO JSON, Parquet (one row an image), or both."
    )
    threads: int = Field(default=0, ge=0, le=256, description="Threads that decode the images of a batch.")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @field_validator("detector")
    @classmethod
    def _absolute_detector(cls, path: str) -> str:
        return os.path.abspath(os.path.expanduser(path)) if path else path

    @field_validator("images")
    @classmethod
    def _absolute(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        # A run can then be gone on with from any folder.
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in images)


def configure(
    detector: str | os.PathLike[str],
    images: Sequence[str] = (),
    assignments: Sequence[str] = (),
    **shorthands: Any,
) -> PredictConfig:
    """The configuration a command line asks for: ``--set``, and the shorthands over it.

    Args:
        detector: Folder of a training, or a file of weights.
        images: Files and folders.
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
    """
    return build(PredictConfig, {**requested(assignments, shorthands, images), "detector": os.fspath(detector)})


def run(
    config: PredictConfig,
    out: Path,
    runner: Runner = run_serial,
    progress: Callable[[Progress], None] = lambda _: None,
) -> StageResult:
    """Find the objects of every image with a trained detector and write them as a run, as `label` does.

    Can be killed at any time and called again; the result is the same bytes. What an image gets depends, in its last
    digits, on the images it shares a batch with, which are always the same.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        runner: What applies the work to the shards.
        progress: Called after every image and once before the first.

    Raises:
        UsageError: If there is nothing to do, or no detector.
        ConfigError: If ``out`` holds a run with another configuration or other weights.
        WeightsError: If the detector cannot be read.
        RunError: If the folder cannot be written or another process is writing it.
    """
    start = time.perf_counter()
    # Before the folder is made: a wrong name or damaged weights leave nothing behind.
    check_device(config.device)
    check_format(config.format)
    file = detector_file(config.detector)
    images = list_images(config.images, exclude=out)
    config = config.replace(digest=digest_of(file))
    work, search = prepare(Search, config, runner)
    description = f"figureground predict, {search.finder.detector.config.detector} {config.digest}"
    with opened(out, config, _FREE):
        describe_run(out, config, config.device)
        sweep = Sweep(out, images, images.names[: config.limit], config.shard_size)
        sweep.run(work, runner, progress)
        kinds = [{"id": number, "name": name} for number, name in search.finder.detector.categories.items()]
        result = write_masks(
            "predict", description, sweep, images, out, start, form=config.format, sure=_SURE, categories=kinds
        )
        sweep.log("end", seconds=result.seconds)
    return result


class Search:
    """Looks for the objects in the images of a shard with a trained detector, several images at once.

    Attributes:
        seconds: Spent in ``decode`` and ``detect``.

    Raises:
        RunError: If the weights are not those that the configuration was made for, as a file of another machine.
    """

    def __init__(self, config: PredictConfig) -> None:
        file = detector_file(config.detector)
        if digest_of(file) != config.digest:
            raise RunError(f"{file} holds other weights than it did when the run was started.")
        changes = {key: value for key in ("nms", "short_side") if (value := getattr(config, key)) is not None}
        detector = load_detector(file, config.device, **changes)
        self.finder = Finder(detector, config.precision, config.score_threshold, config.max_detections)
        self.config = config
        self.seconds: dict[str, float] = {}
        self._threads = ThreadPoolExecutor(config.threads) if config.threads else None

    def examine(self, files: Sequence[File]) -> Iterator[Record | ImageError]:
        """The record of each image, or what is wrong with it."""
        for first in range(0, len(files), self.config.batch_size):
            yield from self._examine_batch(files[first : first + self.config.batch_size])

    def _examine_batch(self, files: Sequence[File]) -> list[Record | ImageError]:
        with self._timed("decode"):
            each = self._threads.map if self._threads else map
            decoded = list(each(self._decode, (path for path, _ in files)))
        good = [(name, *made) for (_, name), made in zip(files, decoded, strict=True) if isinstance(made, tuple)]
        found = iter(())
        if good:
            names, pixels, sizes = zip(*good, strict=True)
            with self._timed("detect"):
                found = iter(self.finder.find(names, pixels, sizes))
        return [made if isinstance(made, ImageError) else _record(next(found)) for made in decoded]

    def _decode(self, path: Path) -> tuple[np.ndarray, Size] | ImageError:
        try:
            return decode(path, self.finder.enough)
        except ImageError as error:
            return error

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.config.device != "cpu":
            torch.cuda.synchronize(self.config.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def _record(found: Any) -> Record:
    return {**found, "instances": len(found["annotations"])}
