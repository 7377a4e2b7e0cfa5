"""From a list of images to one record each, shard by shard: killable, resumable, the same bytes however often."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from figureground.config import Config
from figureground.data.annotation_file import Format, write_annotations
from figureground.data.coco import CATEGORY, ImageAnnotations
from figureground.data.images import decode
from figureground.data.listing import ImageList
from figureground.errors import ImageError, RunError
from figureground.runners import Job, Lost, Report, Runner, run_serial
from figureground.stages.environment import describe
from figureground.stages.result import Progress, StageResult
from figureground.stages.resume import check_config
from figureground.storage import jsonlines
from figureground.storage.atomic import discard_unfinished, make_folder, write_json
from figureground.storage.lock import check_holder, exclusive, read_holder
from figureground.storage.shards import Shard, fingerprint
from figureground.viewer import thumbnail_size, write_report

Record = dict[str, Any]
# Path and name of an image.
File = tuple[Path, str]
E = TypeVar("E", bound="Examiner")


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
        discard_unfinished(out / "shards")
        yield


def describe_run(out: Path, config: Config, device: str) -> None:
    """Write what was asked for and on what it runs, once all names are known to exist."""
    write_json(out / "config.json", config.model_dump(mode="json"))
    write_json(out / "environment.json", describe(device))


@runtime_checkable
class Examiner(Protocol):
    """Looks at images: what a stage is about; made in every process that does the work.

    Attributes:
        seconds: Spent in each part of the work; it is emptied before each shard.
    """

    seconds: dict[str, float]

    def examine(self, files: Sequence[File]) -> Iterable[Record | ImageError]:
        """The record, or what is wrong, of each image of a shard in turn; several may be looked at together.

        A record holds ``instances``, their number, to be counted and taken out.
        """
        ...


def one_by_one(look: Callable[[Path, str], Record], files: Sequence[File]) -> Iterator[Record | ImageError]:
    """Images alone: the record that ``look`` gives of each path and name, or the :class:`ImageError` it raises."""
    for file in files:
        try:
            record: Record | ImageError = look(*file)
        except ImageError as error:
            record = error
        yield record


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done with images, in a form that can be sent to other processes.

    Attributes:
        make: From a configuration to what looks at the images; of the top level of a module, so that it can be sent.
        config: What decides the result.
        made: What looks at them in this process, if it shall.
    """

    make: Callable[[Any], Examiner]
    config: Config
    made: Examiner | None = None

    def open(self) -> Examiner:
        """What looks at the images in this process."""
        return self.made or self.make(self.config)

    def __reduce__(self) -> tuple[Any, ...]:
        return Work, (self.make, self.config)


def prepare(make: Callable[..., E], config: Any, runner: Runner, **shared: Any) -> tuple[Work, E]:
    """Make what looks at the images once in this process, so that what is wrong is said before a folder is made.

    Where other processes shall do the work, this one may have no accelerator: it tries it without.

    Args:
        make: See :class:`Work`.
        config: What decides the result; has ``device``.
        runner: What will apply the work.
        shared: More arguments for ``make`` in this process, which has made them already.

    Returns:
        What is to be done, and what would do it in this process.
    """
    if runner is run_serial:
        made = make(config, **shared)
        return Work(make, config, made), made
    return Work(make, config), make(config.replace(device="cpu"), **shared)


@dataclass(frozen=True, slots=True)
class _Task:
    shard: Shard
    names: tuple[str, ...]
    # Images that no process survives; they are not looked at.
    deadly: frozenset[str] = frozenset()


class Sweep:
    """The images of a run, cut into shards.

    Args:
        out: The run's folder, held by this process.
        images: All images of the run.
        names: Those to look at.
        size: Images a shard.

    Attributes:
        total: How many images there are.
        fresh: Images finished since this start.
    """

    def __init__(self, out: Path, images: ImageList, names: tuple[str, ...], size: int) -> None:
        self._out = out
        self._log = out / "log.jsonl"
        self._images = images
        self._tasks = _cut_shards(images, names, size, out / "shards")
        self.total = len(names)
        self.fresh = 0

    def run(self, work: Work, runner: Runner, progress: Callable[[Progress], None]) -> None:
        """Make the shards that are not done, or hold failures.

        An image that ends the process which looks at it, in a runner that outlives this, is found by looking at those
        of its shard one by one, and becomes a failure like any other; the shard is then made without it.

        Args:
            work: What is to be done.
            runner: What applies it to the shards.
            progress: Called after every image, or every shard where the runner hears no more, and once before.

        Raises:
            RunError: If a shard ends every process although none of its images does; all others are made before.
        """
        counter = _Counter(self.total, progress)
        todo = [task for task in self._tasks if not counter.resume(task.shard)]
        self.log("start", images=self.total, resumed=counter.done)
        counter.report()
        # The names travel with the tasks.
        place = replace(self._images, names=())
        make_shards = partial(_open_shards, work, place, self._out, read_holder(self._out))
        lost = self._apply(make_shards, todo, runner, counter)
        if lost:
            suspects = [name for task in lost for name in task.names]
            tried = runner(partial(_open_trial, work, place), suspects, counter.ignore)
            deadly = frozenset(result.task for result in tried if isinstance(result, Lost))
            self.log("deadly", shards=[task.shard.index for task in lost], images=sorted(deadly))
            again = [replace(task, deadly=deadly.intersection(task.names)) for task in lost]
            lost = self._apply(make_shards, again, runner, counter)
        self.fresh = counter.fresh
        if lost:
            raise RunError(
                f"{len(lost)} of {len(self._tasks)} shards could not be made: the processes that made them died, "
                "though none did at one image alone.",
                "If memory ran out, use fewer --workers. Run the same command again: everything finished is kept.",
            )

    def _apply(self, job: Job, tasks: Sequence[_Task], runner: Runner, counter: "_Counter") -> list[_Task]:
        """Make shards; give back those that could not be."""
        lost = []
        # Whatever ends the loop ends the workers.
        with closing(runner(job, tasks, counter.hear)) as results:
            for result in results:
                if isinstance(result, Lost):
                    lost.append(result.task)
                else:
                    self.log("shard", **result)
                    counter.finish(result)
        return lost

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


def _open_shards(work: Work, images: ImageList, out: Path, holder: str) -> Callable[[_Task, Report], dict[str, Any]]:
    """The function that makes a shard and gives back its summary; it says how far it is after every image."""
    examiner = work.open()

    def make(task: _Task, report: Report) -> dict[str, Any]:
        examiner.seconds.clear()
        made = iter(examiner.examine([(images.path(name), name) for name in task.names if name not in task.deadly]))
        records: list[Record] = []
        instances = failed = 0
        for name in task.names:
            record = ImageError("The process that decoded it died.") if name in task.deadly else next(made)
            if isinstance(record, ImageError):
                record = {"file_name": name, "error": record.message, "instances": 0}
            instances += record.pop("instances")
            failed += "error" in record
            records.append(record)
            report(_Count(task.shard.index, len(records), instances, failed))
        summary = {
            "shard": task.shard.index,
            "images": len(task.names),
            "instances": instances,
            "failed": failed,
            "stage_seconds": {part: round(spent, 4) for part, spent in examiner.seconds.items()},
        }
        check_holder(out, holder)
        task.shard.write(records, summary)
        return summary

    return make


def _open_trial(work: Work, images: ImageList) -> Callable[[str, Report], None]:
    """The function that looks at an image only to see whether its process survives it."""
    examiner = work.open()

    def look(name: str, report: Report) -> None:
        for _ in examiner.examine([(images.path(name), name)]):
            pass

    return look


def write_masks(
    stage: str,
    description: str,
    sweep: Sweep,
    images: ImageList,
    out: Path,
    start: float,
    *,
    form: Format = "json",
    sure: float = 0,
    categories: Sequence[dict[str, Any]] = (CATEGORY,),
) -> StageResult:
    """Write what a stage whose records are annotations has made: annotations, failures, result and report.

    Args:
        stage: Its name.
        description: For the annotations.
        sweep: Run.
        images: All images of the run.
        out: The run's folder.
        start: When this start began, by ``time.perf_counter``.
        form: What the annotations are written as.
        sure: Score from which the report shows instances at first.
        categories: Of the annotations, each with ``id`` and ``name``.
    """
    image_count, instance_count = write_annotations(
        out,
        form,
        lambda: (cast(ImageAnnotations, record) for record in sweep.records()),
        description,
        categories,
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


@dataclass(frozen=True, slots=True)
class _Count:
    """How far a shard is."""

    shard: int
    images: int
    instances: int
    failed: int


class _Counter:
    """Counts images and speaks of progress."""

    def __init__(self, total: int, progress: Callable[[Progress], None]) -> None:
        self._total, self._progress = total, progress
        self.done = self.fresh = self._instances = self._failed = 0
        self._begun: dict[int, _Count] = {}
        self._last: Progress | None = None

    def resume(self, shard: Shard) -> bool:
        """Count a shard that is done; one with failures is to be made again."""
        summary = shard.summary()
        if summary is None or summary["failed"]:
            return False
        self.done += summary["images"]
        self._instances += summary["instances"]
        return True

    def hear(self, count: _Count) -> None:
        """A shard is begun, and so far; one that is begun again starts anew."""
        self._begun[count.shard] = count
        self.report()

    def ignore(self, word: Any) -> None:
        """A word that does not count."""

    def finish(self, summary: dict[str, Any]) -> None:
        """A shard is done."""
        self._begun.pop(summary["shard"], None)
        self.done += summary["images"]
        self.fresh += summary["images"]
        self._instances += summary["instances"]
        self._failed += summary["failed"]
        self.report()

    def report(self) -> None:
        """Speak, if there is something new."""
        begun = self._begun.values()
        images = sum(count.images for count in begun)
        now = Progress(
            self.done + images,
            self._total,
            self.fresh + images,
            self._instances + sum(count.instances for count in begun),
            self._failed + sum(count.failed for count in begun),
        )
        if now != self._last:
            self._last = now
            self._progress(now)


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
