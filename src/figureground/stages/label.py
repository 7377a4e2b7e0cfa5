"""`figureground label`: a folder of photographs to object masks."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from figureground.config import build, differences, merge, parse_assignments
from figureground.data.coco import ImageAnnotations, annotate, write_coco
from figureground.data.images import decode, load_image
from figureground.data.listing import ImageList, list_images
from figureground.errors import ConfigError, ImageError
from figureground.runners import Runner, run_serial
from figureground.stages.environment import describe
from figureground.stages.labeller import Labeller, LabellerConfig
from figureground.stages.result import Progress, StageResult
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_json
from figureground.storage.lock import exclusive
from figureground.storage.shards import Shard, fingerprint
from figureground.viewer import write_report

# What may differ when a run goes on: where it computes, and how much of the list it covers.
_FREE = ("device", "limit")


class LabelConfig(LabellerConfig):
    """Everything that decides what `label` writes."""

    images: tuple[str, ...] = Field(default=(), description="Files and folders of images.")
    limit: int | None = Field(default=None, ge=1, description="Only the first images of the sorted list.")
    shard_size: int = Field(default=16, ge=1, le=10_000, description="Images a shard: what a kill can cost at most.")

    @field_validator("images")
    @classmethod
    def _absolute(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        # A run can then be gone on with from any folder.
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in images)


@dataclass(frozen=True, slots=True)
class _Task:
    shard: Shard
    names: tuple[str, ...]


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
    given = {key: value for key, value in shorthands.items() if value is not None}
    over = merge(parse_assignments(assignments), given)
    chosen = (over.get("method", base.get("method")), over.get("preset", base.get("preset")))
    if chosen != (base.get("method"), base.get("preset")):
        # The file's settings of the method were those of another method or preset.
        base.pop(str(base.get("method")), None)
    tree = merge(base, over)
    if images:
        tree["images"] = list(images)
    return build(LabelConfig, tree)


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
        progress: Called after every image and once before the first.

    Raises:
        UsageError: If there is nothing to do or a name does not exist.
        ConfigError: If ``out`` holds a run with another configuration.
        RunError: If the folder cannot be written or another process is writing it.
    """
    start = time.perf_counter()
    images = list_images(config.images, exclude=out)
    names = images.names[: config.limit]
    make_folder(out / "shards")
    with exclusive(out):
        _check_config(config, out / "config.json")
        labeller = Labeller(config)
        write_json(out / "config.json", config.model_dump(mode="json"))
        write_json(out / "environment.json", describe(config.device))
        tasks = _cut_shards(images, names, config.shard_size, out / "shards")
        counter = _Counter(len(names), progress)
        todo = [task for task in tasks if not counter.resume(task)]
        jsonlines.append(
            out / "log.jsonl", {"event": "start", "time": time.time(), "images": len(names), "resumed": counter.done}
        )
        counter.report()

        def work(task: _Task) -> dict[str, Any]:
            return _label_shard(labeller, images, task, counter)

        for summary in runner(work, todo):
            jsonlines.append(out / "log.jsonl", {"event": "shard", "time": time.time(), **summary})
        result = _finish(config, images, tasks, out, counter, start)
        jsonlines.append(out / "log.jsonl", {"event": "end", "time": time.time(), "seconds": result.seconds})
    return result


def _check_config(config: LabelConfig, path: Path) -> None:
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}.", "Choose another --out.") from None
    old, new = (
        {key: value for key, value in tree.items() if key not in _FREE}
        for tree in (before, config.model_dump(mode="json"))
    )
    changed = differences(old, new)
    if changed:
        raise ConfigError(
            f"{path.parent} holds a run with another configuration:\n  " + "\n  ".join(changed),
            "Choose another --out, or give the same settings to go on with it.",
        )


def _cut_shards(images: ImageList, names: tuple[str, ...], size: int, folder: Path) -> list[_Task]:
    tasks = []
    for index, first in enumerate(range(0, len(names), size)):
        part = names[first : first + size]
        # The size of a file stands for its content: a photograph that was mended since is looked at again.
        inputs = [f"{name}\n{_size_bytes(images.path(name))}" for name in part]
        tasks.append(_Task(Shard(folder, index, fingerprint(inputs)), part))
    return tasks


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class _Counter:
    """Counts images and speaks of progress."""

    def __init__(self, total: int, progress: Callable[[Progress], None]) -> None:
        self.total, self.progress = total, progress
        self.done = self.fresh = self.instances = self.failed = 0

    def resume(self, task: _Task) -> bool:
        """Count a shard that is done; one with failures is to be made again."""
        summary = task.shard.summary()
        if summary is None or summary["failed"]:
            return False
        self.done += summary["images"]
        self.instances += summary["instances"]
        return True

    def add(self, instances: int, failed: bool) -> None:
        """Count one image."""
        self.done += 1
        self.fresh += 1
        self.instances += instances
        self.failed += failed
        self.report()

    def report(self) -> None:
        """Speak."""
        self.progress(Progress(self.done, self.total, self.fresh, self.instances, self.failed))


def _label_shard(labeller: Labeller, images: ImageList, task: _Task, counter: _Counter) -> dict[str, Any]:
    labeller.seconds = {}
    records: list[dict[str, Any]] = []
    instances = failed = 0
    for name in task.names:
        try:
            record: dict[str, Any] = dict(_label_image(labeller, images.path(name), name))
        except ImageError as error:
            record = {"file_name": name, "error": error.message}
        records.append(record)
        found = len(record.get("annotations", ()))
        instances += found
        failed += "error" in record
        counter.add(found, "error" in record)
    summary = {
        "shard": task.shard.index,
        "images": len(task.names),
        "instances": instances,
        "failed": failed,
        "stage_seconds": {part: round(seconds, 4) for part, seconds in labeller.seconds.items()},
    }
    task.shard.write(records, summary)
    return summary


def _label_image(labeller: Labeller, path: Path, name: str) -> ImageAnnotations:
    with labeller.timed("decode"):
        pixels, size = decode(path, enough=labeller.fitted_size)
    try:
        instances = labeller(pixels, size)
    except ValueError as error:
        raise ImageError(f"No features could be made of the image: {error}") from error
    with labeller.timed("write"):
        return annotate(name, size, instances)


def _finish(
    config: LabelConfig, images: ImageList, tasks: list[_Task], out: Path, counter: _Counter, start: float
) -> StageResult:
    def records() -> Iterator[dict[str, Any]]:
        for task in tasks:
            yield from task.shard.read()

    def labelled() -> Iterator[Any]:
        return (record for record in records() if "error" not in record)

    image_count, instance_count = write_coco(
        out / "annotations.json", labelled, f"figureground label, {config.method} on {config.backbone.name}"
    )
    failures = [{"path": record["file_name"], "error": record["error"]} for record in records() if "error" in record]
    jsonlines.write(out / "failures.jsonl", failures)
    stage_seconds: dict[str, float] = {}
    for task in tasks:
        for part, seconds in (task.shard.summary() or {}).get("stage_seconds", {}).items():
            stage_seconds[part] = round(stage_seconds.get(part, 0.0) + seconds, 4)
    seconds = time.perf_counter() - start
    result = StageResult(
        out=out,
        report=out / "report.html",
        images=image_count,
        instances=instance_count,
        failed=len(failures),
        ignored=images.ignored,
        resumed=counter.total - counter.fresh,
        seconds=round(seconds, 3),
        stage_seconds=stage_seconds,
    )
    facts = {key: value for key, value in asdict(result).items() if key not in ("out", "report")}
    rate = round(counter.fresh / seconds, 3) if counter.fresh else None
    write_json(out / "result.json", {"stage": "label", **facts, "images_per_s": rate, "image_root": str(images.root)})
    write_report(out, load_image=lambda name: load_image(images.path(name)))
    return result
