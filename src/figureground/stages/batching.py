"""The images of a shard in batches: decoded ahead, looked at together, written down while the next batch runs."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figureground.data.coco import annotate
from figureground.data.images import Size, decode
from figureground.errors import ImageError
from figureground.stages.labeller import Labeller
from figureground.structures import Instances

# Threads beyond these would not be needed at a thousand images a second.
_MOST_THREADS = 16
Record = dict[str, Any]


def label_in_batches(labeller: Labeller, files: Sequence[tuple[Path, str]]) -> Iterator[Record | ImageError]:
    """The record of each image of a shard in turn, or what is wrong with it.

    Images of one fitted size are looked at together, ``labeller.batch_size`` at once; what is left at the end of the
    shard makes smaller batches. Which images share a batch depends on the shard alone, and not on how fast it is read.
    The time of decoding and writing, which threads do on the side, is that of all threads together.

    Args:
        labeller: What finds the objects; its ``seconds`` are added to.
        files: Path and name of each image.

    Yields:
        As :func:`~figureground.data.coco.annotate`, with ``instances``, their number.
    """
    if not files:
        return
    with _Shard(labeller, files) as shard:
        yield from shard.run()


class _Shard:
    """The work on one shard."""

    def __init__(self, labeller: Labeller, files: Sequence[tuple[Path, str]]) -> None:
        self._labeller, self._files = labeller, files
        on_cpu = labeller.config.device == "cpu"
        # On a CPU the work itself takes the cores; elsewhere they have nothing else to do.
        threads = 1 if on_cpu else min(_MOST_THREADS, os.cpu_count() or 1)
        # One thread each for torch too: a mask is resized faster than a team of threads is called together.
        self._readers = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._writers = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._sizes: dict[int, Size] = {}
        # By place in the shard: what waits for its batch, and what has been made.
        self._waiting: dict[tuple[int, ...], dict[int, torch.Tensor]] = {}
        self._made: dict[int, Future[Record] | ImageError] = {}

    def __enter__(self) -> "_Shard":
        return self

    def __exit__(self, *error: object) -> None:
        for pool in (self._readers, self._writers):
            pool.shutdown(cancel_futures=True)

    def run(self) -> Iterator[Record | ImageError]:
        batch_size = self._labeller.batch_size
        reading: deque[Future[tuple[np.ndarray, Size]]] = deque()
        submitted = given = 0
        for index in range(len(self._files)):
            while submitted < len(self._files) and len(reading) < 2 * batch_size:
                reading.append(self._readers.submit(self._read, self._files[submitted][0]))
                submitted += 1
            try:
                pixels, size = reading.popleft().result()
            except ImageError as error:
                self._made[index] = error
            else:
                self._sizes[index] = size
                fitted = self._labeller.fit(pixels, size)
                group = self._waiting.setdefault(tuple(fitted.shape), {})
                group[index] = fitted
                if len(group) == batch_size:
                    self._look(tuple(fitted.shape))
            # What is made and needs not be waited for goes out, so that the progress is seen.
            while given in self._made and _is_ready(self._made[given]):
                yield self._take(given)
                given += 1
        for shape in list(self._waiting):
            self._look(shape)
        for index in range(given, len(self._files)):
            yield self._take(index)

    def _look(self, shape: tuple[int, ...]) -> None:
        group = self._waiting.pop(shape)
        for index, found in zip(group, self._labeller.find_together(list(group.values())), strict=True):
            if isinstance(found, ImageError):
                self._made[index] = found
            else:
                self._made[index] = self._writers.submit(self._write, index, found)

    def _take(self, index: int) -> Record | ImageError:
        made = self._made.pop(index)
        return made if isinstance(made, ImageError) else made.result()

    def _read(self, path: Path) -> tuple[np.ndarray, Size]:
        with self._labeller.timed("decode", on_device=False):
            return decode(path, enough=self._labeller.fitted_size)

    def _write(self, index: int, found: Instances) -> Record:
        with self._labeller.timed("write", on_device=False):
            parts = self._labeller.method.PARTS
            record = annotate(self._files[index][1], self._sizes.pop(index), found, parts=parts)
            return {**record, "instances": len(record["annotations"])}


def _is_ready(made: Future[Record] | ImageError) -> bool:
    return isinstance(made, ImageError) or made.done()
