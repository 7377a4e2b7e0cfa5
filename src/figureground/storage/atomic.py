"""Files that are either wholly there or not at all."""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from figureground.errors import RunError

_UNFINISHED = ".tmp"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name only when the block ends without an error.

    The bytes go to a temporary name beside it, are flushed to the disk and renamed; a crash or a kill leaves either the
    old file or the new one.

    Raises:
        RunError: If the disk is full or the folder cannot be written; nothing half-written is left.
    """
    # Not the process's id: on another machine that shares the folder another process has the same.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_UNFINISHED}")
    try:
        with explained(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with writing(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode("ascii"))


def make_folder(path: Path) -> None:
    """Make a folder and its parents; an error says which part is in the way."""
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)


def discard_unfinished(folder: Path) -> None:
    """Remove the files that kills have left half-written in a folder which nobody else is writing to."""
    for left in folder.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            left.unlink()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what it means that a file could not be written.

    Raises:
        RunError: For any :class:`OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"The disk is full: {path} could not be written.",
                "Free some space and run the same command again: everything finished so far is kept.",
            ) from error
        raise RunError(
            f"{path} could not be written: {error.strerror or error}.", "Choose another --out, or make it writable."
        ) from error


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk; not every platform lets a folder be opened.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
