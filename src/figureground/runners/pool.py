"""Workers that may die, and tasks that must not be lost with them: what all runners with workers have in common."""

import logging
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from figureground.errors import RunError
from figureground.runners.interface import Lost, Report, Result, Task

_log = logging.getLogger(__name__)
# A task at which so many workers died is not tried again; so many that die before their first ends the run.
_DEATHS = 2
_FAILED_STARTS = 3


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has made its function and can take a task."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the function says of the task it is at."""

    word: Any


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """A task is done."""

    result: Result


@dataclass(frozen=True, slots=True)
class Failed:
    """The function, or making it, raised an error."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is no more."""

    reason: str


Event = Ready | Said | Done[Any] | Failed | Died


def attempt(do: Callable[[], Event]) -> Event:
    """What a worker answers: what ``do`` gives, or the error it raises in a form that another process can read."""
    try:
        return do()
    except Exception as error:
        error.add_note("In a worker:\n" + "".join(traceback.format_exception(error)))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error of anyone's can hold anything
            error = RunError("\n".join([f"{type(error).__name__} in a worker: {error}", *error.__notes__]))
        return Failed(error)


@runtime_checkable
class Worker(Protocol):
    """A worker, as :func:`drive` sees it."""

    def give(self, task: Any) -> None:
        """Send a task; one that has died meanwhile says so by its next event."""
        ...

    def end(self) -> None:
        """End it, whatever it is at."""
        ...


W = TypeVar("W", bound=Worker)


@runtime_checkable
class Pool(Protocol[W]):
    """Where workers come from."""

    def start(self, others: Collection[W]) -> W:
        """Start one beside others; it says :class:`Ready` by and by, or dies."""
        ...

    def wait(self, workers: Collection[W]) -> Iterable[tuple[W, Event]]:
        """Wait until some of these workers have something to say."""
        ...


@dataclass(slots=True)
class _Attempt:
    task: Any
    deaths: int = 0


def drive(pool: Pool[W], tasks: Sequence[Task], count: int, report: Report) -> Generator[Any, None, None]:
    """Do tasks with at most ``count`` workers; see :class:`~figureground.runners.interface.Runner`.

    Raises:
        RunError: If workers die again and again before they can take a task.
    """
    waiting = deque(_Attempt(task) for task in tasks)
    # What each is at; those that are not ready yet, and those without a task, have none.
    at: dict[W, _Attempt | None] = {}
    idle: list[W] = []
    failed_starts = 0
    try:
        while waiting or any(at.values()):
            busy = sum(attempt is not None for attempt in at.values())
            while len(at) < min(count, busy + len(waiting)):
                at[pool.start(at.keys())] = None
            while idle and waiting:
                worker = idle.pop()
                at[worker] = waiting.popleft()
                worker.give(at[worker].task)  # type: ignore[union-attr]
            for worker, event in pool.wait(at.keys()):
                if isinstance(event, Said):
                    report(event.word)
                elif isinstance(event, Failed):
                    raise event.error
                elif isinstance(event, Died):
                    attempt = at.pop(worker)
                    worker.end()
                    if attempt is not None:
                        yield from _try_again(attempt, waiting, event.reason)
                    elif worker in idle:
                        idle.remove(worker)
                    else:
                        failed_starts += 1
                        _check_starts(failed_starts, event.reason)
                else:
                    at[worker] = None
                    idle.append(worker)
                    failed_starts = 0
                    if isinstance(event, Done):
                        yield event.result
    finally:
        for worker in at:
            worker.end()


def _try_again(attempt: _Attempt, waiting: deque[_Attempt], reason: str) -> Iterator[Lost]:
    attempt.deaths += 1
    _log.warning("A worker died (%s); what it was at is tried again.", reason)
    if attempt.deaths < _DEATHS:
        # First in turn, so that it does not hold up the end.
        waiting.appendleft(attempt)
    else:
        yield Lost(attempt.task)


def _check_starts(failed: int, reason: str) -> None:
    if failed >= _FAILED_STARTS:
        raise RunError(
            f"Workers die before they can take a task ({reason}).",
            "If memory ran out, use fewer --workers. A script of your own that starts workers must do so below "
            "`if __name__ == '__main__':`.",
        )
