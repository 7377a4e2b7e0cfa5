"""One shard after the other, in this process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

Task = TypeVar("Task")
Result = TypeVar("Result")


@runtime_checkable
class Runner(Protocol):
    """Applies a function to tasks and yields the results as they come."""

    def __call__(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Apply ``function`` to every task."""
        ...


def run_serial(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """Apply ``function`` to each task in turn.

    Example:
        >>> list(run_serial(abs, [-1, 2]))
        [1, 2]
    """
    yield from map(function, tasks)
