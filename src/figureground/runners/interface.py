"""What runners promise."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

Task = TypeVar("Task")
Result = TypeVar("Result")

Report = Callable[[Any], None]
"""Takes a word on how far a task is; a runner whose workers are far away may leave it out."""
Job = Callable[[], Callable[[Task, Report], Result]]
"""Called once in each worker, makes the function that does the tasks; it, the tasks and the results can be pickled."""


@dataclass(frozen=True, slots=True)
class Lost(Generic[Task]):
    """A task at which a worker died, twice.

    Attributes:
        task: As it was given.
    """

    task: Task


@runtime_checkable
class Runner(Protocol):
    """Applies the function of a job to tasks and yields the results as they come, in any order.

    An error of the function ends the run and is raised here. A worker that dies costs nothing but the task it was at,
    which is tried again, by another; if that one dies as well, the task is yielded as :class:`Lost`. To close the
    iterator is to end the workers.
    """

    def __call__(
        self, job: Job[Task, Result], tasks: Sequence[Task], report: Report
    ) -> Generator[Result | Lost[Task], None, None]:
        """Do every task.

        Args:
            job: What is to be done.
            tasks: With what.
            report: Takes what the function says while it is at a task.
        """
        ...
