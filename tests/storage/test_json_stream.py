"""Lists of JSON files read entry by entry: the same as all at once, in the memory of one entry."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from figureground.storage import json_stream
from figureground.storage.json_stream import JsonStream

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
DOCUMENTS = st.dictionaries(st.sampled_from(["images", "annotations", "info", "é"]), VALUES | st.lists(VALUES))
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@pytest.fixture(params=[1, 7])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few characters are read at once that every value is cut somewhere."""
    monkeypatch.setattr(json_stream, "_CHUNK", request.param)


def write(folder: Path, text: str) -> JsonStream:
    (folder / "file.json").write_text(text, "utf-8")
    return JsonStream(folder / "file.json")


@pytest.mark.usefixtures("chunk")
@SLOW
@given(DOCUMENTS, st.sampled_from([None, 0, 25]), st.booleans())
def test_the_same_as_all_at_once(tmp_path: Path, document: dict[str, Any], indent: int | None, ascii: bool) -> None:
    stream = write(tmp_path, json.dumps(document, indent=indent, ensure_ascii=ascii) + "\n ")
    assert (stream.is_object, stream.is_list) == (True, False)
    for key, value in document.items():
        if isinstance(value, list):
            assert list(stream.entries(key)) == list(stream.entries(key, stop=True)) == value
        else:
            with pytest.raises(TypeError):
                list(stream.entries(key))
    with pytest.raises(KeyError):
        list(stream.entries("another"))


@pytest.mark.usefixtures("chunk")
@SLOW
@given(st.lists(VALUES, min_size=1), st.data())
def test_a_file_that_is_not_whole_is_an_error(tmp_path: Path, entries: list[Any], data: st.DataObject) -> None:
    """As json says: cut anywhere, or with any one character taken out or put in."""
    text = json.dumps({"info": {}, "images": entries, "annotations": []}, indent=1)
    place = data.draw(st.integers(0, len(text) - 1))
    kind = data.draw(st.sampled_from(["cut", "out", "in"]))
    rest = {"cut": "", "out": text[place + 1 :], "in": data.draw(st.sampled_from('{}[],:"1x')) + text[place:]}[kind]
    try:
        expected = json.loads(text[:place] + rest)["images"]
    except (ValueError, KeyError):
        with pytest.raises((ValueError, KeyError)):
            list(write(tmp_path, text[:place] + rest).entries("images"))
    else:
        assert list(write(tmp_path, text[:place] + rest).entries("images")) == expected


def test_what_python_writes_and_other_readers_refuse(tmp_path: Path) -> None:
    """Names that are not UTF-8, and numbers that are none."""
    stream = write(tmp_path, '{"images": ["\\udcff.jpg", -Infinity, 1e400]}')
    assert list(stream.entries("images")) == ["\udcff.jpg", float("-inf"), float("inf")]


def test_a_bare_list_and_a_bare_value(tmp_path: Path) -> None:
    stream = write(tmp_path, " [1, [2]]")
    assert (stream.is_object, stream.is_list, list(stream.items())) == (False, True, [1, [2]])
    stream = write(tmp_path, "7")
    assert (stream.is_object, stream.is_list) == (False, False)
    for broken in ("", " ", "7 8", "tru"):
        with pytest.raises(ValueError, match="at character"):
            write(tmp_path, broken)


def test_errors_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"images": [{"id": index} for index in range(1000)]})
    place = text.index("700")
    monkeypatch.setattr(json_stream, "_CHUNK", 50)
    with pytest.raises(ValueError, match=f"Expecting value at character {place}"):
        list(write(tmp_path, text[:place] + "x" + text[place + 1 :]).entries("images"))
    with pytest.raises(ValueError, match="`images` is given twice"):
        list(write(tmp_path, '{"images": [], "images": []}').entries("images"))
    with pytest.raises(ValueError, match="Extra data at character 15"):
        list(write(tmp_path, '{"images": []} x').entries("images"))


def test_a_text_without_an_end_is_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 10)
    monkeypatch.setattr(json_stream, "LONGEST", 100)
    assert list(write(tmp_path, json.dumps({"images": ["x" * 80]})).entries("images")) == ["x" * 80]
    with pytest.raises(ValueError, match="more than 100 characters begins at character 12"):
        list(write(tmp_path, '{"images": ["' + "x" * 10_000 + '"]}').entries("images"))


def test_a_long_file_takes_the_memory_of_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 20_000)
    entry = {"id": 1, "counts": "x" * 300}
    stream = write(tmp_path, '{"info": {}, "images": [' + ", ".join([json.dumps(entry)] * 2_000) + "]}")
    assert stream.path.stat().st_size > 600_000
    tracemalloc.start()
    assert sum(found == entry for found in stream.entries("images")) == 2_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150_000
