import errno
import json
import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from figureground.errors import RunError
from figureground.storage import atomic, jsonlines
from figureground.storage.lock import check_holder, exclusive, read_holder
from figureground.storage.shards import Shard, fingerprint


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), atomic.writing(path) as file:
        file.write(b"half of the ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="disk is full") as caught, atomic.writing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "run the same command again" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        atomic.make_folder(tmp_path / "file" / "below")
    with pytest.raises(RunError, match="could not be written"):
        atomic.write_bytes(tmp_path / "missing" / "file", b"")


def test_a_real_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def test_a_line_that_does_not_fit_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match="disk is full"):
        jsonlines.append(tmp_path / "log.jsonl", {"a": 1})


def test_what_kills_have_left_is_removed_when_the_folder_is_held(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in (".a.json.123.tmp", "a.tmp", ".b.json", "below/.c.json.123.tmp"):
        (tmp_path / name).touch()
    with exclusive(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"a.tmp", ".b.json", "below", ".lock", ".holder"}
    assert (tmp_path / "below" / ".c.json.123.tmp").exists()


def test_a_hold_is_told_from_the_next(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        first = read_holder(tmp_path)
        check_holder(tmp_path, first)
    with exclusive(tmp_path), pytest.raises(RunError, match="Another process writes"):
        check_holder(tmp_path, first)


def test_lines_survive_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert jsonlines.read(path) == []
    jsonlines.append(path, {"a": 1})
    with open(path, "ab") as file:
        file.write(b'{"b": ')
    jsonlines.append(path, {"c": "é\n"})
    assert jsonlines.read(path) == [{"a": 1}, {"c": "é\n"}]


def test_a_shard_is_done_only_for_its_inputs(tmp_path: Path) -> None:
    shard = Shard(tmp_path, 3, fingerprint(["a", "b"]))
    assert shard.summary() is None
    shard.write([{"file_name": "a"}], {"images": 2})
    assert shard.summary() == {"images": 2, "fingerprint": shard.fingerprint}
    assert shard.read() == [{"file_name": "a"}]
    assert Shard(tmp_path, 3, fingerprint(["a", "c"])).summary() is None
    shard.data_path.unlink()
    assert shard.summary() is None


def test_a_shard_whose_word_is_cut_short_is_not_done(tmp_path: Path) -> None:
    shard = Shard(tmp_path, 0, "f")
    shard.write([], {})
    shard.done_path.write_text('{"finger')
    assert shard.summary() is None


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = Shard(tmp_path, 0, "f"), Shard(tmp_path, 1, "f")
    first.write([{"x": 1}], {})
    second.write([{"x": 1}], {})
    assert first.data_path.read_bytes() == second.data_path.read_bytes()


def test_json_is_indented_and_ends_with_a_newline(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a.json", {"é": 1})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"é": 1}


def _hold(folder: str, held: Event, release: Event) -> None:
    with exclusive(Path(folder)):
        held.set()
        release.wait(30)


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), held, release))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(RunError, match="Another process"), exclusive(tmp_path):
            pass
    finally:
        release.set()
        other.join(30)
    with exclusive(tmp_path):
        pass
