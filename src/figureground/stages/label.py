"""`figureground label`: a folder of photographs to object masks."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from figureground.config import build, merge, requested
from figureground.data.annotation_file import Format, check_format
from figureground.data.coco import annotate
from figureground.data.images import decode
from figureground.data.listing import list_images
from figureground.errors import ConfigError, ImageError
from figureground.runners import Runner, run_serial
from figureground.stages.batching import label_in_batches
from figureground.stages.labeller import Labeller, LabellerConfig
from figureground.stages.result import Progress, StageResult
from figureground.stages.sharding import File, Record, Sweep, describe_run, one_by_one, opened, prepare, write_masks

# What may differ when a run goes on: where it computes, how much of the list it covers, and what it is written as.
_FREE = ("device", "limit", "format")


class LabelConfig(LabellerConfig):
    """Everything that decides what `label` writes."""

    images: tuple[str, ...] = Field(default=(), description="Files and folders of images.")
    limit: int | None = Field(default=None, ge=1, description="Only the first images of the sorted list.")
    shard_size: int = Field(default=16, ge=1, le=10_000, description="Images a shard: what a kill can cost at most.")
    format: Format = Field(
        default="json", description="Of the annotations: COCO JSON, Parquet (one row an image), or both."
    )

    @field_validator("images")
    @classmethod
    def _absolute(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        # A run can then be gone on with from any folder.
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in images)


def configure(
    images: Sequence[str] = (),
    config_file: Path | None = None,
    assignments: Sequence[str] = (),
    **shorthands: Any,
) -> LabelConfig:
    """The configuration a command line asks for: a file, then ``--set``, then the shorthands, each over the last.

    Args:
        images: Files and folders; none keeps those of the file.
        config_file: The ``config.json`` of a run.
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist, a value is out of range, or the file cannot be read.
    """
    base: dict[str, Any] = {}
    if config_file is not None:
        try:
            base = json.loads(config_file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{config_file} cannot be read as a configuration: {error}.") from None
    over = requested(assignments, shorthands, images)
    chosen = (over.get("method", base.get("method")), over.get("preset", base.get("preset")))
    if chosen != (base.get("method"), base.get("preset")):
        # The file's settings of the method were those of another method or preset.
        base.pop(str(base.get("method")), None)
    return build(LabelConfig, merge(base, over))


def run(
    config: LabelConfig,
    out: Path,
    runner: Runner = run_serial,
    progress: Callable[[Progress], None] = lambda _: None,
) -> StageResult:
    """Find the objects of every image and write them as a run.

    Can be killed at any time and called again: shards that are done are not made again, and the result is the same
    bytes. Images that failed are tried again.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        runner: What applies the work to the shards.
        progress: Called after every image, or shard where the runner says no more, and once before the first.

    Raises:
        UsageError: If there is nothing to do or a name does not exist.
        ConfigError: If ``out`` holds a run with another configuration.
        RunError: If the folder cannot be written or another process is writing it.
    """
    start = time.perf_counter()
    check_format(config.format)
    images = list_images(config.images, exclude=out)
    # Before the folder is made: a wrong name or missing weights leave nothing behind.
    work, _ = prepare(Labelling, config, runner)
    with opened(out, config, _FREE):
        describe_run(out, config, config.device)
        sweep = Sweep(out, images, images.names[: config.limit], config.shard_size)
        sweep.run(work, runner, progress)
        description = f"figureground label, {config.method} on {config.backbone.name}"
        result = write_masks("label", description, sweep, images, out, start, form=config.format)
        sweep.log("end", seconds=result.seconds)
    return result


class Labelling:
    """Looks for the objects in the images of a shard.

    Attributes:
        seconds: Those of the labeller.
        batch_size: Images that are looked at together.
    """

    def __init__(self, config: LabelConfig) -> None:
        self._labeller = Labeller(config)
        self.seconds = self._labeller.seconds
        self.batch_size = self._labeller.batch_size

    def examine(self, files: Sequence[File]) -> Iterator[Record | ImageError]:
        """The record of each image, or what is wrong with it."""
        if self.batch_size > 1:
            return label_in_batches(self._labeller, files)
        return one_by_one(self._look, files)

    def _look(self, path: Path, name: str) -> Record:
        labeller = self._labeller
        with labeller.timed("decode"):
            pixels, size = decode(path, enough=labeller.fitted_size)
        try:
            instances = labeller(pixels, size)
        except ValueError as error:
            raise ImageError(f"No features could be made of the image: {error}") from error
        with labeller.timed("write"):
            found = annotate(name, size, instances, parts=labeller.method.PARTS)
        return {**found, "instances": len(found["annotations"])}
