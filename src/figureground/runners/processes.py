"""Several processes on this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from figureground.runners.cores import count_cores, environment, share_cores, thread_variables
from figureground.runners.interface import Job, Lost, Report, Result, Task
from figureground.runners.pool import Died, Done, Event, Failed, Ready, Said, attempt, drive

# Not forked: a fork of a process with threads (torch has some) can hang.
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class ProcessRunner:
    """Does tasks in processes of its own on this machine; see :class:`~figureground.runners.interface.Runner`.

    Attributes:
        workers: How many; ``None``: one for each accelerator, or for each core where there are none.
        accelerators: CUDA devices the workers take in turn, as ``CUDA_VISIBLE_DEVICES`` names them; each worker sees
            its own alone. Empty: all see what this process sees.
    """

    workers: int | None = None
    accelerators: tuple[str, ...] = ()

    def __call__(
        self, job: Job[Task, Result], tasks: Sequence[Task], report: Report
    ) -> Generator[Result | Lost[Task], None, None]:
        """Do every task."""
        count = self.workers or len(self.accelerators) or count_cores()
        threads = share_cores(count_cores(), count)
        return drive(_Processes(job, threads, self.accelerators), tasks, count, report)


class _Process:
    """A process and this end of the pipe to it."""

    def __init__(self, job: Job, variables: dict[str, str], seat: int) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.seat = seat
        self._process = _SPAWN.Process(target=_serve, args=(theirs, job), name=f"figureground worker {seat}")
        with environment(variables), _unstoppable():
            self._process.start()
        # Only the worker holds that end now, so that its death closes the pipe.
        theirs.close()

    def give(self, task: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(task)

    def hear(self) -> Event:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return Died(_ending(self._process.exitcode))

    def end(self) -> None:
        self.pipe.close()
        # Not asked but killed: nothing it holds is needed, and what it writes is whole or not there.
        self._process.kill()
        self._process.join()
        self._process.close()


class _Processes:
    """Starts workers and listens to all of them."""

    def __init__(self, job: Job, threads: int, accelerators: tuple[str, ...]) -> None:
        self._job, self._threads, self._accelerators = job, threads, accelerators

    def start(self, others: Collection[_Process]) -> _Process:
        taken = {worker.seat for worker in others}
        seat = next(seat for seat in range(len(taken) + 1) if seat not in taken)
        variables = thread_variables(self._threads)
        if self._accelerators:
            variables["CUDA_VISIBLE_DEVICES"] = self._accelerators[seat % len(self._accelerators)]
        return _Process(self._job, variables, seat)

    def wait(self, workers: Collection[_Process]) -> Iterator[tuple[_Process, Event]]:
        by_pipe = {worker.pipe: worker for worker in workers}
        for pipe in connection.wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]
            yield worker, worker.hear()


def _serve(pipe: Connection, job: Job) -> None:
    """What a worker does: tasks, until the pipe is closed or one fails."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    function: Any = None

    def begin() -> Event:
        nonlocal function
        function = job()
        return Ready()

    def work(task: Any) -> Event:
        return Done(function(task, lambda word: pipe.send(Said(word))))

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        event = attempt(begin)
        while True:
            pipe.send(event)
            if isinstance(event, Failed):
                return
            event = attempt(partial(work, pipe.recv()))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    # A run whose process was killed may be gone on with at once: nothing of the old one may still write.
    os._exit(1)


@contextmanager
def _unstoppable() -> Iterator[None]:
    """Let a process that is started here never see Ctrl-C, which every process of a terminal gets.

    The signal is this process's to handle; one that comes meanwhile waits for the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
