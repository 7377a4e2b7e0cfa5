"""Files of masks in whatever order, and of whatever length."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from figureground.data.label_file import LabelFile
from figureground.errors import UsageError
from figureground.ops.rle import encode
from figureground.storage import json_stream, packed

SIZE = [6, 8]


def counts(run: int) -> list[int]:
    """Runs of a mask that no other number has."""
    return [run, 1, 47 - run]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 46)), max_size=30), st.permutations(range(3)))
def test_annotations_anywhere_in_the_file(tmp_path: Path, owners: list[tuple[int, int]], order: list[int]) -> None:
    """Before the images or after them, those of an image together or not; within an image the file's order stays."""
    annotations = [
        {"image_id": 10 * image, "segmentation": {"size": SIZE, "counts": counts(run)}, "score": run / 100}
        for image, run in owners
    ]
    images = [{"id": 10 * image, "file_name": f"{image}.jpg", "height": 6, "width": 8} for image in (3, 1, 4, 0, 2)]
    parts: list[tuple[str, Any]] = [("images", images), ("annotations", annotations), ("info", {"a": [1]})]
    path = tmp_path / "file.json"
    path.write_text(json.dumps(dict(parts[place] for place in order)))
    file = LabelFile(path)
    assert (len(file), file.annotations, file.rejected) == (5, len(owners), 0)
    for found, image in zip(file, (3, 1, 4, 0, 2), strict=True):
        assert found["file_name"] == f"{image}.jpg"
        expected = [run / 100 for owner, run in owners if owner == image]
        assert [entry["score"] for entry in found["annotations"]] == expected


def test_a_cut_file_is_an_error_wherever_it_is_cut(tmp_path: Path) -> None:
    mask = {"image_id": 1, "segmentation": {"size": SIZE, "counts": counts(3)}}
    image = {"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}
    for content in ({"images": [image], "annotations": [mask]}, {"annotations": [mask], "images": [image]}):
        text = json.dumps(content)
        for end in range(len(text)):
            (tmp_path / "file.json").write_text(text[:end])
            with pytest.raises(UsageError, match="is not JSON"):
                LabelFile(tmp_path / "file.json")


def test_a_long_file_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places and numbers, not masks: those lie in a file. While it is read, too."""
    monkeypatch.setattr(packed, "IN_MEMORY_BYTES", 20_000)
    monkeypatch.setattr(json_stream, "_CHUNK", 20_000)
    stripes = torch.zeros((1, 32, 32), dtype=torch.bool)
    stripes[:, ::2] = True
    mask = {"segmentation": encode(stripes)[0], "score": 0.5}
    count = 1000
    images = [{"id": index, "file_name": f"{index}.jpg", "height": 32, "width": 32} for index in range(count)]
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"images": images, "annotations": [{**mask, "image_id": i % 7} for i in range(count)]}))
    assert path.stat().st_size > 1000 * count
    tracemalloc.start()
    file = LabelFile(path)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.annotations == count
    assert size < 0.1 * path.stat().st_size
    assert peak < 0.3 * path.stat().st_size
