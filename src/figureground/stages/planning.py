"""`figureground label --dry-run`: what a run will do, how long it will take and how much it will write."""

import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from figureground.data.listing import list_images
from figureground.errors import ImageError
from figureground.stages.label import LabelConfig, Labelling
from figureground.stages.sharding import File, Record
from figureground.storage.shards import Shard

# Images, or batches where images are looked at together, that are timed.
_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would be, by a sample of its images.

    Attributes:
        images: How many it would look at.
        ignored: Files in the given folders that are no images.
        shards: Into how many it would be cut.
        batch_size: Images looked at together.
        sampled: Images that were looked at, spread evenly over the list.
        failed: How many of these could not be used.
        instances: Found in these.
        image_s: Seconds an image takes in one process, the first not counted.
        image_error_s: Standard error of ``image_s``; ``None`` where a single time was taken.
        annotations_bytes: Size of the COCO file in the end.
        shards_bytes: Size of all shards in the end.
    """

    images: int
    ignored: int
    shards: int
    batch_size: int
    sampled: int
    failed: int
    instances: int
    image_s: float
    image_error_s: float | None
    annotations_bytes: int
    shards_bytes: int

    def total_s(self, workers: int = 1) -> tuple[float, float]:
        """From how many seconds to how many the images will take.

        Args:
            workers: Processes that share them, each as fast as the one of the sample.
        """
        error = 2 * (self.image_error_s or 0.0)
        per_worker = math.ceil(self.shards / workers) / self.shards * self.images
        return max(self.image_s - error, 0.0) * per_worker, (self.image_s + error) * per_worker


def plan(config: LabelConfig, out: Path | None = None) -> Plan:
    """Look at a few of the images a run would look at, and say what the whole would be; nothing is left behind.

    Args:
        config: Of the run.
        out: The run's folder, if it lies among the images.

    Raises:
        UsageError: As the run itself would.
    """
    images = list_images(config.images, exclude=out)
    names = images.names[: config.limit]
    work = Labelling(config)
    batch_size = work.batch_size
    count = min(len(names), _SAMPLES * batch_size)
    chosen = [names[index * len(names) // count] for index in range(count)]
    files = [(images.path(name), name) for name in chosen]
    # The first use of everything is slow: not counted.
    list(work.examine(files[:batch_size]))
    times, records = [], []
    # Images of one shape make full batches in a shard, so a sample in batches is timed as one shard.
    for part in [[file] for file in files] if batch_size == 1 else [files]:
        start = time.perf_counter()
        records += [_as_record(file, found) for file, found in zip(part, work.examine(part), strict=True)]
        times.append((time.perf_counter() - start) / len(part))
    error = statistics.stdev(times) / math.sqrt(len(times)) if len(times) > 1 else None
    instances = sum(record.pop("instances") for record in records)
    scale = len(names) / count
    return Plan(
        images=len(names),
        ignored=images.ignored,
        shards=math.ceil(len(names) / config.shard_size),
        batch_size=batch_size,
        sampled=count,
        failed=sum("error" in record for record in records),
        instances=instances,
        image_s=statistics.mean(times),
        image_error_s=error,
        annotations_bytes=round(scale * sum(len(json.dumps(record)) for record in records)),
        shards_bytes=round(scale * _shards_bytes(records, config.shard_size)),
    )


def _as_record(file: File, found: Record | ImageError) -> Record:
    return {"file_name": file[1], "error": found.message, "instances": 0} if isinstance(found, ImageError) else found


def _shards_bytes(records: list[Record], size: int) -> int:
    """What shards of these records take on disk."""
    with tempfile.TemporaryDirectory() as folder:
        for index, first in enumerate(range(0, len(records), size)):
            Shard(Path(folder), index, "0" * 24).write(records[first : first + size], {"images": size})
        return sum(path.stat().st_size for path in Path(folder).iterdir())
