"""Batches made of single examples, in this process or by workers beside it: the same ones to the bit."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from itertools import count as numbers
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader

from figureground.errors import FiguregroundError
from figureground.training import distributed
from figureground.training.order import batch_indices, generator_for

T = TypeVar("T")
B = TypeVar("B")
Draws = list[tuple[int, int]]
_FILES = 65_536


def batches_of(
    example: Callable[[int, int], T],
    count: int,
    batch_size: int,
    seed: int,
    *,
    workers: int = 0,
    collate: Callable[[list[T]], B] = list,
) -> Callable[[int], Iterator[B]]:
    """What :func:`figureground.training.loop.train` takes its batches from.

    Args:
        example: From an index below ``count`` and the number of the draw, which no other draw of the run has, to an
            example. All that is random in it comes from these two
            (:func:`figureground.training.order.generator_for`).
        count: How many examples there are.
        batch_size: Examples a step, over all ranks (:func:`figureground.training.distributed.joined`) there now are;
            each makes its share.
        seed: Of the order.
        workers: Processes that make the batches ahead of time, of one thread each; 0: they are made here, when they are
            asked for. With workers, ``example``, ``collate`` and what they hold must be picklable.
        collate: From a rank's examples to its batch. Few large tensors travel faster than many small ones.

    Returns:
        From the number of a step to this rank's batches of it and of those that follow, without end. An error of
        ``example`` is raised where its batch is due.

    Raises:
        ConfigError: If the ranks cannot share a batch evenly.
    """
    places = distributed.share(range(batch_size))
    make = _Make(example, collate)

    def draws(step: int) -> Iterator[Draws]:
        for now in numbers(step):
            indices = batch_indices(count, batch_size, now, seed)
            yield [(indices[place], now * batch_size + place) for place in places]

    def here(step: int) -> Iterator[B]:
        return (make.batch(each) for each in draws(step))

    def by_workers(step: int) -> Iterator[B]:
        for made in _loader(make, draws(step), workers, seed):
            if isinstance(made, _Failed):
                raise made.error
            yield made

    return by_workers if workers else here


class _Make(Generic[T, B]):
    """The examples of a batch, put together; indexed by a worker, which hands an error over as a value."""

    def __init__(self, example: Callable[[int, int], T], collate: Callable[[list[T]], B]) -> None:
        self.example, self.collate = example, collate

    def batch(self, draws: Draws) -> B:
        return self.collate([self.example(index, draw) for index, draw in draws])

    def __getitem__(self, draws: Draws) -> "B | _Failed":
        try:
            return self.batch(draws)
        except FiguregroundError as error:
            # The loader would raise it with a traceback for a message, and without its remedy.
            return _Failed(error)


class _Failed:
    def __init__(self, error: FiguregroundError) -> None:
        self.error = error


def _loader(make: Any, draws: Iterator[Draws], workers: int, seed: int) -> DataLoader:
    _allow_files()
    return DataLoader(
        make,
        batch_size=None,
        sampler=draws,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=distributed.world().device.startswith("cuda"),
        # A fork of a process that has computed with several threads, or on a GPU, may hang.
        multiprocessing_context="spawn",
        # Seeds the workers' global generators, which nothing reads; without it the global one here would be drawn from.
        generator=generator_for(seed, "workers"),
        worker_init_fn=_settle,
    )


def _settle(worker: int) -> None:
    # A worker with more to hand over than a pipe takes would else wait for ever on a parent that was killed.
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _allow_files() -> None:
    """Let this process and its workers hold as many files as they may: each tensor of a batch that waits is one."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        if soft != resource.RLIM_INFINITY and soft < enough:
            resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


def _as_it_is(batch: B) -> B:
    return batch
