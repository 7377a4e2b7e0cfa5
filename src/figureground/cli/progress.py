"""A progress bar with images a second and the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from figureground.stages.result import Progress

if TYPE_CHECKING:
    from figureground.training.loop import StepReport


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on stderr while the block runs; what it yields is called with each :class:`Progress`."""
    bar = _bar(title)
    start: float | None = None
    task = bar.add_task(title, total=None, rate="", counts="")

    # Shown from the first word on, so that an error before it stands alone.
    try:

        def show(progress: Progress) -> None:
            nonlocal start
            start = start or perf_counter()
            # Only what this start did tells how fast it is: earlier shards cost nothing now.
            rate = progress.fresh / max(perf_counter() - start, 1e-9)
            left = (progress.total - progress.done) / rate if rate else 0
            speed = f"{rate:.2f} images/s, {clock(left)} left" if progress.fresh else ""
            failed = f", {progress.failed} failed" if progress.failed else ""
            counts = f"{progress.instances} objects{failed}"
            bar.start()
            bar.update(task, completed=progress.done, total=progress.total, rate=speed, counts=counts)

        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def training_bar(title: str) -> "Iterator[Callable[[StepReport], None]]":
    """Show a bar of steps on stderr while the block runs; what it yields is called with each report of the loop."""
    bar = _bar(title)
    start: tuple[float, int] | None = None
    task = bar.add_task(title, total=None, rate="", counts="")
    try:

        def show(report: "StepReport") -> None:
            nonlocal start
            done = report.position.step
            start = start or (perf_counter(), done)
            speed = f"{report.images_per_s:.1f} images/s"
            if done > start[1]:
                step_s = (perf_counter() - start[0]) / (done - start[1])
                speed += f", {clock((report.steps - done) * step_s)} left"
            skipped = f", {report.position.skipped} skipped" if report.position.skipped else ""
            bar.start()
            counts = f"loss {report.loss:.4f}{skipped}"
            bar.update(task, completed=done, total=report.steps, rate=speed, counts=counts)

        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def _bar(title: str) -> Bar:
    return Bar(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[counts]}"),
        console=Console(stderr=True),
    )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
