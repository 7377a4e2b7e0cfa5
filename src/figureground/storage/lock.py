"""One run at a time in a folder."""

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from figureground.errors import RunError
from figureground.storage.atomic import discard_unfinished, explained, write_bytes


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; the hold ends with the process, however it ends.

    What earlier ones that were killed have left half-written is removed.

    Raises:
        RunError: If another process holds it.
    """
    with explained(folder / ".lock"):
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _take(descriptor)
        except OSError:
            raise RunError(
                f"Another process is writing to {folder}.",
                "Wait for it to end, or choose another --out.",
            ) from None
        write_bytes(folder / ".holder", uuid.uuid4().hex.encode("ascii"))
        discard_unfinished(folder)
        yield
    finally:
        os.close(descriptor)


def read_holder(folder: Path) -> str:
    """Which hold of the folder is the present or the last one; each has another name."""
    return (folder / ".holder").read_text("ascii")


def check_holder(folder: Path, holder: str) -> None:
    """Before a worker writes: the hold it was started under may have ended with its process, or another machine.

    Raises:
        RunError: If the folder has been held anew since.
    """
    if read_holder(folder) != holder:
        raise RunError(f"Another process writes to {folder} now; this worker's was ended.")


if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
