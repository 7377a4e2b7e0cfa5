"""Many small values held in little memory."""

import contextlib
import json
import mmap
import multiprocessing.reduction
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np

from figureground.errors import RunError

IN_MEMORY_BYTES = 1 << 26
"""What a block may have to stay in memory; a longer one lies in an unnamed temporary file that is mapped into it."""

# Windows has none.
_DupFd: Any = getattr(multiprocessing.reduction, "DupFd", None)


class Packed:
    """JSON values packed into one block.

    One block, and not a million small objects: it costs little, is pickled at once, and stays shared between forked
    processes. One that lies in a file is shared with spawned processes, too; elsewhere it is pickled with what is in
    it.

    Args:
        values: Gone through once.

    Raises:
        RunError: If the folder for temporary files is full.

    Example:
        >>> list(Packed([1, {"a": None}]))
        [1, {'a': None}]
    """

    def __init__(self, values: Iterable[Any]) -> None:
        ends = array("q", [0])

        def texts() -> Iterator[bytes]:
            for value in values:
                text = json.dumps(value, separators=(",", ":")).encode("ascii")
                ends.append(ends[-1] + len(text))
                yield text

        self._hold(texts())
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        """The value at a place from 0."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return json.loads(self._block[self._ends[index] : self._ends[index + 1]])

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        if self._descriptor is not None and _DupFd is not None and get_spawning_popen() is not None:
            return {"ends": self._ends, "file": _DupFd(self._descriptor)}
        return {"ends": self._ends, "block": self._block[:]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._ends = state["ends"]
        if "file" in state:
            self._map(state["file"].detach())
        else:
            self._hold([state["block"]])

    def _hold(self, texts: Iterable[bytes]) -> None:
        waiting = bytearray()
        with contextlib.ExitStack() as stack:
            file = None
            for text in texts:
                waiting += text
                if len(waiting) > IN_MEMORY_BYTES:
                    file = file or stack.enter_context(tempfile.TemporaryFile(buffering=0))
                    _write(file, waiting)
                    waiting.clear()
            if file is None:
                self._descriptor: int | None = None
                self._block: bytes | mmap.mmap = bytes(waiting)
            else:
                _write(file, waiting)
                self._map(os.dup(file.fileno()))

    def _map(self, descriptor: int) -> None:
        # The file has no name: it is gone with the last process that holds it, however that ends.
        self._descriptor = descriptor
        self._block = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        weakref.finalize(self, os.close, descriptor)


def _write(file: Any, content: bytearray) -> None:
    try:
        left = memoryview(content)
        while left:
            written = file.write(left)
            left = left[written:]
    except OSError as error:
        raise RunError(
            f"The folder for temporary files, {tempfile.gettempdir()}, cannot be written: {error.strerror or error}.",
            "Free some space there, or name another folder: TMPDIR=/big/disk figureground ...",
        ) from error
