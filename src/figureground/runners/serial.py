"""One shard after the other, in this process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Runner(Protocol):
    """Applies a function to tasks and yields the results as they come."""

    def __call__(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]: ...


def run_serial(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """Apply ``function`` to each task in turn.

    Example:
        >>> list(run_serial(abs, [-1, 2]))
        [1, 2]
    """
    yield from map(function, tasks)
