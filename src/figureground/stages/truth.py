"""`figureground truth`: the original annotations of a published data set to class-agnostic truth."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from figureground.config import Config, build
from figureground.data.datasets.builders import open_source
from figureground.data.datasets.catalogue import DataSet, find
from figureground.data.datasets.source import Source, TruthImage
from figureground.data.datasets.write import write_truth
from figureground.errors import ImageError, UsageError
from figureground.stages.result import Progress
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder


class TruthConfig(Config):
    """Everything that decides what `truth` writes."""

    name: str = Field(description="A data set of the catalogue.")
    root: str = Field(description="The folder that it was unpacked into.")
    limit: int | None = Field(default=None, ge=1, description="Only the first images.")


@dataclass(frozen=True, slots=True)
class TruthResult:
    """What was written.

    Attributes:
        path: The COCO file.
        data_set: The row of the catalogue.
        images: Written.
        objects: In them, crowd regions not counted.
        crowd: Regions of several objects, or to be ignored.
        difficult: Of the objects, those that the benchmark calls difficult.
        failures: What was left out, images and single annotations, a sentence each.
        failures_path: The same as JSON lines, each with the image's path; ``None`` where nothing was left out.
        notes: What a reader of the file has to know.
        seconds: Wall-clock time.
    """

    path: Path
    data_set: DataSet
    images: int
    objects: int
    crowd: int
    difficult: int
    failures: tuple[str, ...]
    failures_path: Path | None
    notes: tuple[str, ...]
    seconds: float


def configure(name: str, root: str | Path, limit: int | None = None) -> TruthConfig:
    """The configuration a command line asks for.

    Raises:
        ConfigError: If a value is out of range.
    """
    return build(TruthConfig, {"name": name, "root": str(root), "limit": limit})


def run(config: TruthConfig, out: Path, progress: Callable[[Progress], None] = lambda _: None) -> TruthResult:
    """Write the truth of a data set as a COCO file with the one category `object`.

    The file is either wholly there or not at all. Images and annotations that are broken are left out and named, in the
    result and in ``<out>.failures.jsonl``.

    Args:
        config: What to do.
        out: The COCO file.
        progress: Called after every image and once before the first.

    Raises:
        UsageError: If the data set is unknown, a path of it is missing, its annotations are damaged as a whole, no
            image can be used, or ``out`` is one of the originals.
        RunError: If the file cannot be written.
    """
    start = time.perf_counter()
    data_set, root = find(config.name), Path(config.root).expanduser()
    _spare_the_originals(data_set, root, out)
    source = open_source(data_set, root)
    make_folder(out.parent)
    counter = _Counter(source, config.limit, progress)
    info = {
        "description": f"{data_set.title}, class-agnostic; built by figureground from the original annotations",
        "data_set": data_set.name,
        "image_root": data_set.image_root,
        "url": data_set.homepage,
        "licence": data_set.licence,
        **({"classes": list(data_set.classes)} if data_set.classes else {}),
    }
    write_truth(out, counter.images(), info)
    failures_path = out.with_name(f"{out.name}.failures.jsonl")
    if counter.failures:
        jsonlines.write(failures_path, [{"path": path, "error": error} for path, error in counter.failures])
    else:
        failures_path.unlink(missing_ok=True)  # of an earlier start
    return TruthResult(
        path=out,
        data_set=data_set,
        images=counter.done - counter.failed,
        objects=counter.objects,
        crowd=counter.crowd,
        difficult=counter.difficult,
        failures=tuple(error for _, error in counter.failures),
        failures_path=failures_path if counter.failures else None,
        notes=_notes(data_set, counter.done, config.limit),
        seconds=round(time.perf_counter() - start, 3),
    )


class _Counter:
    """Counts what goes by and speaks of progress."""

    def __init__(self, source: Source, limit: int | None, progress: Callable[[Progress], None]) -> None:
        self.source, self.limit, self.progress = source, limit, progress
        self.total = len(source.names[:limit])
        self.failures = [("", error) for error in source.broken]
        self.done = self.failed = self.objects = self.crowd = self.difficult = 0

    def images(self) -> Iterator[TruthImage]:
        """The images that can be used."""
        self._report()
        for name, record in self.source.records(self.limit):
            self.done += 1
            if isinstance(record, ImageError):
                self.failed += 1
                self.failures.append((name, record.message))
            else:
                self._add(record)
                yield record
            self._report()
        if self.failed == self.done:
            # Raised while the file is being written, so that none appears.
            raise UsageError(
                f"None of the {self.done} images could be used. The first: {self.failures[len(self.source.broken)][1]}"
            )

    def _add(self, image: TruthImage) -> None:
        self.failures += [(image.file_name, error) for error in image.broken]
        self.crowd += sum(entry.crowd for entry in image.objects)
        self.objects += sum(not entry.crowd for entry in image.objects)
        self.difficult += sum(entry.difficult for entry in image.objects)

    def _report(self) -> None:
        self.progress(Progress(self.done, self.total, self.done, self.objects, self.failed))


def _spare_the_originals(data_set: DataSet, root: Path, out: Path) -> None:
    for path in (*data_set.annotations, *data_set.lists):
        if out.resolve() == (root / path).resolve():
            raise UsageError(f"--out {out} is the original file of {data_set.title}.", "Choose another name.")


def _notes(data_set: DataSet, found: int, limit: int | None) -> tuple[str, ...]:
    notes = [data_set.notes] if data_set.notes else []
    if limit is None and found != data_set.published_images:
        notes.append(f"The set was published with {data_set.published_images} images; here there are {found}.")
    return tuple(notes)
