"""A progress bar with images a second and the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from figureground.stages.result import Progress


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on stderr while the block runs; what it yields is called with each :class:`Progress`."""
    bar = Bar(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[counts]}"),
        console=Console(stderr=True),
    )
    start = perf_counter()
    with bar:
        task = bar.add_task(title, total=None, rate="", counts="")

        def show(progress: Progress) -> None:
            # Only what this start did tells how fast it is: earlier shards cost nothing now.
            rate = progress.fresh / max(perf_counter() - start, 1e-9)
            left = (progress.total - progress.done) / rate if rate else 0
            speed = f"{rate:.2f} images/s, {_clock(left)} left" if progress.fresh else ""
            failed = f", {progress.failed} failed" if progress.failed else ""
            counts = f"{progress.instances} objects{failed}"
            bar.update(task, completed=progress.done, total=progress.total, rate=speed, counts=counts)

        yield show


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
