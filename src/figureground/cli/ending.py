"""How verbs that work on images end, worded once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn Ctrl-C into a sentence and exit code 130: what is done is kept."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. Run the same command again to go on from here.")
        raise typer.Exit(130) from None


def is_first_process() -> bool:
    """Whether this is the one to speak of the processes that ``torchrun`` has started; alone, it is."""
    return os.environ.get("RANK", "0") == "0"


def say_left_out(console: Console, out: Path, failed: int, ignored: int) -> None:
    """Say what could not be used and where it is named, and how many files were no images."""
    if failed:
        console.print(f"{failed} images could not be used; each is named in {escape(str(out))}/failures.jsonl.")
    if ignored:
        console.print(f"{ignored} other files were passed over.")
