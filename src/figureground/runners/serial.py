"""One task after the other, in this process, which a worker's death would be the death of."""

from collections.abc import Generator, Sequence

from figureground.runners.interface import Job, Report, Result, Task


def run_serial(job: Job[Task, Result], tasks: Sequence[Task], report: Report) -> Generator[Result, None, None]:
    """Do each task in turn; see :class:`~figureground.runners.interface.Runner`.

    Example:
        >>> list(run_serial(lambda: lambda task, report: abs(task), [-1, 2], print))
        [1, 2]
    """
    function = job() if tasks else None
    for task in tasks:
        yield function(task, report)  # type: ignore[misc]
