"""Jobs that the tests of runners send to workers."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from figureground.errors import ImageError, RunError


def square() -> Any:
    """Squares, and says each number before."""

    def function(task: int, report: Any) -> int:
        report(task)
        return task * task

    return function


def environment() -> Any:
    """What a worker's environment holds; fails at ``""``."""

    def function(name: str, report: Any) -> tuple[int, str | None]:
        if not name:
            raise RunError("no name, no value", "Take another.")
        return os.getpid(), os.environ.get(name)

    return function


def deadly(folder: Path) -> Any:
    """Dies at ``once`` the first time, at ``always`` every time; gives other tasks back with its process."""

    def function(task: str, report: Any) -> tuple[str, int]:
        first = not (folder / task).exists()
        (folder / task).touch()
        if task == "always" or (task == "once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        return task, os.getpid()

    return function


def broken() -> Any:
    """Dies while it starts."""
    os._exit(7)


def refused() -> Any:
    """Fails while it starts."""
    raise ImageError("no function today", "Come back tomorrow.")


def failing() -> Any:
    """Fails at a task."""

    def function(task: int, report: Any) -> int:
        if task == 3:
            raise RunError("three is too many", "Take two.")
        return task

    return function


class UnsendableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def unsendable() -> Any:
    def function(task: int, report: Any) -> int:
        raise UnsendableError(1, 2)

    return function


def slow() -> Any:
    """Says which process it is and takes its time."""

    def function(task: int, report: Any) -> int:
        report(os.getpid())
        time.sleep(60)
        return task

    return function
