"""Values packed into a block: in memory, in a file, and in other processes."""

import errno
import json
import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest

from figureground.errors import RunError
from figureground.storage import packed
from figureground.storage.packed import Packed

VALUES: list[Any] = [{"id": index, "name": f"é\udcff{index}" * (index % 7)} for index in range(500)] + [None, [], 1.5]


@pytest.fixture(params=["memory", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.setattr(packed, "IN_MEMORY_BYTES", 1000)
    return request.param


def test_values_come_back(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    held = Packed(iter(VALUES))
    assert list(held) == VALUES
    assert (len(held), held[3], held[len(VALUES) - 1]) == (len(VALUES), VALUES[3], 1.5)
    for index in (-1, len(VALUES)):
        with pytest.raises(IndexError):
            held[index]
    # A file of no name is left behind by no process, however it ends.
    assert list(tmp_path.iterdir()) == []
    assert (list(Packed([])), len(Packed([]))) == ([], 0)


def test_a_copy_holds_its_own(kind: str) -> None:
    held = Packed(VALUES)
    content = pickle.dumps(held)
    del held
    assert list(pickle.loads(content)) == VALUES


def _tell(held: Packed, path: str) -> None:
    Path(path).write_text(json.dumps([held[7], len(held)]))


def test_a_spawned_process_shares_the_file(kind: str, tmp_path: Path) -> None:
    held = Packed(VALUES)
    process = multiprocessing.get_context("spawn").Process(target=_tell, args=(held, str(tmp_path / "told")))
    process.start()
    process.join()
    assert json.loads((tmp_path / "told").read_text()) == [VALUES[7], len(VALUES)]


def test_files_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "IN_MEMORY_BYTES", 1000)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if before is None:
        pytest.skip("needs /proc")
    for _ in range(5):
        Packed(VALUES)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packed, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(RunError, match="No space left") as caught:
        Packed(VALUES)
    assert "TMPDIR" in str(caught.value.remedy)


def test_an_error_of_the_values_passes(kind: str) -> None:
    def values():
        yield from VALUES
        raise OSError("theirs")

    with pytest.raises(OSError, match="theirs"):
        Packed(values())
