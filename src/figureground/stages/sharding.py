"""From a list of images to one record each, shard by shard: killable, resumable, the same bytes however often."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from figureground.config import Config
from figureground.data.coco import ImageAnnotations, write_coco
from figureground.data.images import decode
from figureground.data.listing import ImageList
from figureground.errors import ImageError
from figureground.runners import Runner
from figureground.stages.environment import describe
from figureground.stages.result import Progress, StageResult
from figureground.stages.resume import check_config
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_json
from figureground.storage.lock import exclusive
from figureground.storage.shards import Shard, fingerprint
from figureground.viewer import thumbnail_size, write_report

Record = dict[str, Any]
# Path and name of an image.
File = tuple[Path, str]


@contextmanager
def opened(out: Path, config: Config, free: Collection[str]) -> Iterator[None]:
    """Hold a run's folder for this process, for a run with this configuration.

    Args:
        out: The folder; made if it does not exist.
        config: What decides the result.
        free: Top-level keys that may differ when a run goes on.

    Raises:
        ConfigError: If the folder holds a run with another configuration; the keys are listed.
        RunError: If the folder cannot be written or another process is writing it.
    """
    make_folder(out / "shards")
    with exclusive(out):
        check_config(config, out / "config.json", free)
        yield


def describe_run(out: Path, config: Config, device: str) -> None:
    """Write what was asked for and on what it runs, once all names are known to exist."""
    write_json(out / "config.json", config.model_dump(mode="json"))
    write_json(out / "environment.json", describe(device))


@dataclass(frozen=True, slots=True)
class _Task:
    shard: Shard
    names: tuple[str, ...]


class Sweep:
    """The images of a run, cut into shards.

    Args:
        out: The run's folder.
        images: All images of the run.
        names: Those to look at.
        size: Images a shard.

    Attributes:
        total: How many images there are.
        fresh: Images finished since this start.
    """

    def __init__(self, out: Path, images: ImageList, names: tuple[str, ...], size: int) -> None:
        self._log = out / "log.jsonl"
        self._images = images
        self._tasks = _cut_shards(images, names, size, out / "shards")
        self.total = len(names)
        self.fresh = 0

    def run(
        self,
        examine: Callable[[Path, str], Record],
        seconds: dict[str, float],
        runner: Runner,
        progress: Callable[[Progress], None],
    ) -> None:
        """Make the shards that are not done, or hold failures, image by image.

        Args:
            examine: Path and name of an image to its record, which holds ``instances``, their number, to be counted
                and taken out. An :class:`ImageError` becomes a record with ``error``.
            seconds: What ``examine`` adds the time of its parts to; emptied for each shard.
            runner: What applies the work to the shards.
            progress: Called after every image and once before the first.
        """

        def one(files: Sequence[File]) -> list[Record | ImageError]:
            [file] = files
            try:
                return [examine(*file)]
            except ImageError as error:
                return [error]

        self.run_batches(one, 1, seconds, runner, progress)

    def run_batches(
        self,
        examine: Callable[[Sequence[File]], Sequence[Record | ImageError]],
        batch_size: int,
        seconds: dict[str, float],
        runner: Runner,
        progress: Callable[[Progress], None],
    ) -> None:
        """Make the shards that are not done, or hold failures, several images at once.

        Args:
            examine: Paths and names of images to the record, or the error, of each; see :meth:`run`.
            batch_size: Images at once; fewer at the end of a shard, which no batch reaches over.
            seconds: What ``examine`` adds the time of its parts to; emptied for each shard.
            runner: What applies the work to the shards.
            progress: Called after every image and once before the first.
        """
        counter = _Counter(self.total, progress)
        todo = [task for task in self._tasks if not counter.resume(task.shard)]
        self.log("start", images=self.total, resumed=counter.done)
        counter.report()

        def work(task: _Task) -> dict[str, Any]:
            seconds.clear()
            return self._make(task, examine, batch_size, seconds, counter)

        for summary in runner(work, todo):
            self.log("shard", **summary)
        self.fresh = counter.fresh

    def log(self, event: str, **facts: Any) -> None:
        """Add a line to ``log.jsonl``."""
        jsonlines.append(self._log, {"event": event, "time": time.time(), **facts})

    def records(self) -> Iterator[Record]:
        """What was made of the images that could be used, in their order."""
        return (record for record in self._all() if "error" not in record)

    def failures(self) -> list[dict[str, str]]:
        """Path and error of those that could not."""
        return [{"path": record["file_name"], "error": record["error"]} for record in self._all() if "error" in record]

    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent in each part, over all starts."""
        total: dict[str, float] = {}
        for task in self._tasks:
            for part, seconds in (task.shard.summary() or {}).get("stage_seconds", {}).items():
                total[part] = round(total.get(part, 0.0) + seconds, 4)
        return total

    def _all(self) -> Iterator[Record]:
        for task in self._tasks:
            yield from task.shard.read()

    def _make(
        self,
        task: _Task,
        examine: Callable[[Sequence[File]], Sequence[Record | ImageError]],
        batch_size: int,
        seconds: dict[str, float],
        counter: "_Counter",
    ) -> dict[str, Any]:
        records: list[Record] = []
        instances = failed = 0
        for first in range(0, len(task.names), batch_size):
            names = task.names[first : first + batch_size]
            made = examine([(self._images.path(name), name) for name in names])
            for name, record in zip(names, made, strict=True):
                if isinstance(record, ImageError):
                    record = {"file_name": name, "error": record.message, "instances": 0}
                found = record.pop("instances")
                records.append(record)
                instances += found
                failed += "error" in record
                counter.add(found, "error" in record)
        summary = {
            "shard": task.shard.index,
            "images": len(task.names),
            "instances": instances,
            "failed": failed,
            "stage_seconds": {part: round(spent, 4) for part, spent in seconds.items()},
        }
        task.shard.write(records, summary)
        return summary


def write_masks(
    stage: str, description: str, sweep: Sweep, images: ImageList, out: Path, start: float, *, sure: float = 0
) -> StageResult:
    """Write what a stage whose records are annotations has made: COCO file, failures, result and report.

    Args:
        stage: Its name.
        description: For the COCO file.
        sweep: Run.
        images: All images of the run.
        out: The run's folder.
        start: When this start began, by ``time.perf_counter``.
        sure: Score from which the report shows instances at first.
    """
    image_count, instance_count = write_coco(
        out / "annotations.json",
        lambda: (cast(ImageAnnotations, record) for record in sweep.records()),
        description,
    )
    failures = sweep.failures()
    jsonlines.write(out / "failures.jsonl", failures)
    seconds = time.perf_counter() - start
    result = StageResult(
        out=out,
        report=out / "report.html",
        images=image_count,
        instances=instance_count,
        failed=len(failures),
        ignored=images.ignored,
        resumed=sweep.total - sweep.fresh,
        seconds=round(seconds, 3),
        stage_seconds=sweep.stage_seconds(),
    )
    facts = {key: value for key, value in asdict(result).items() if key not in ("out", "report")}
    rate = round(sweep.fresh / seconds, 3) if sweep.fresh else None
    write_json(out / "result.json", {"stage": stage, **facts, "images_per_s": rate, "image_root": str(images.root)})
    write_report(out, load_image=lambda name: decode(images.path(name), enough=thumbnail_size)[0], sure=sure)
    return result


class _Counter:
    """Counts images and speaks of progress."""

    def __init__(self, total: int, progress: Callable[[Progress], None]) -> None:
        self.total, self.progress = total, progress
        self.done = self.fresh = self.instances = self.failed = 0

    def resume(self, shard: Shard) -> bool:
        """Count a shard that is done; one with failures is to be made again."""
        summary = shard.summary()
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
