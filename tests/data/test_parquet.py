"""Annotations as Parquet: the same as the COCO file, whoever reads them."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from figureground.data import parquet
from figureground.data.annotation_file import find_annotations, open_annotations
from figureground.data.coco import ImageAnnotations, annotate, write_coco
from figureground.data.label_file import LabelFile
from figureground.data.parquet import write_parquet
from figureground.data.truth import read_predictions, read_truth
from figureground.errors import UsageError
from figureground.stages.labels import find_labels
from figureground.structures import Instances

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)


@st.composite
def raw_images(draw: st.DrawFn) -> list[tuple[str, int, int, list[bool], list[float], list[int]]]:
    """Name, size, and the pixels, scores and categories of masks."""
    made = []
    for name in draw(st.lists(st.text(min_size=1) | st.just("not UTF-8 \udcff.jpg"), max_size=5)):
        height, width, count = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(0, 3))
        pixels = draw(st.lists(st.booleans(), min_size=count * height * width, max_size=count * height * width))
        scores = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
        categories = draw(st.lists(st.integers(1, 2**40), min_size=count, max_size=count))
        made.append((name, height, width, pixels, scores, categories))
    return made


def annotated(raw: list[Any], **kwargs: bool) -> list[ImageAnnotations]:
    """As the stages write them."""
    made = []
    for name, height, width, pixels, scores, categories in raw:
        masks = torch.tensor(pixels, dtype=torch.bool).reshape(len(scores), height, width)
        boxes = torch.tensor([[0.25, 0, width, height]]).expand(len(scores), 4)
        found = Instances(masks, boxes, torch.tensor(scores), torch.tensor(categories, dtype=torch.int64))
        made.append(annotate(name, (height, width), found, **kwargs))
    return made


def write(folder: Path, content: list[ImageAnnotations], **kwargs: Any) -> tuple[Path, Path]:
    counts = write_coco(folder / "a.json", lambda: content, "both", **kwargs)
    assert write_parquet(folder / "a.parquet", iter(content), "both", **kwargs) == counts
    return folder / "a.json", folder / "a.parquet"


def without_null(entries: Iterator[Any]) -> list[Any]:
    return [{key: value for key, value in entry.items() if value is not None} for entry in entries]


@SLOW
@given(raw_images(), st.booleans(), st.booleans(), st.integers(1, 3), st.sampled_from([1, 1 << 24]))
def test_the_same_as_the_coco_file(
    tmp_path: Path, raw: list[Any], parts: bool, own_boxes: bool, rows: int, size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_GROUP_IMAGES", rows)
        patch.setattr(parquet, "_GROUP_BYTES", size)
        content = annotated(raw, parts=parts, own_boxes=own_boxes)
        coco, table = (open_annotations(path) for path in write(tmp_path, content))
    for key in ("images", "annotations"):
        assert without_null(table.entries(key)) == without_null(coco.entries(key))


def drawn(count: int = 9) -> list[ImageAnnotations]:
    content = []
    for index in range(count):
        masks = torch.zeros((index % 3, 20, 30), dtype=torch.bool)
        for place in range(len(masks)):
            masks[place, 2 + place : 12, 3 : 10 + index] = True
        scores = torch.linspace(0.2, 0.9, len(masks)) if len(masks) else torch.zeros(0)
        boxes = torch.tensor([[3.0, 2, 10, 12]]).expand(len(masks), 4)
        found = Instances(masks, boxes, scores, torch.arange(len(masks)) + 1)
        content.append(annotate(f"{index}.jpg", (20, 30), found))
    return content


def test_every_reader_reads_both(tmp_path: Path) -> None:
    coco, table = write(tmp_path, drawn())
    assert list(LabelFile(table)) == list(LabelFile(coco))
    truths = [read_truth(path) for path in (coco, table)]
    found = [[read_predictions(path, truth).annotations for path in (coco, table)] for truth in truths]
    assert truths[0].annotations == truths[1].annotations
    assert truths[0].images == truths[1].images
    assert found[0][0] == found[0][1] == found[1][0] == found[1][1]
    assert len(truths[1].all()) == 9


def test_the_categories_are_those_given(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "Ünit"}]
    coco, table = write(tmp_path, drawn(), categories=categories)
    assert list(open_annotations(table).entries("categories")) == categories
    assert list(open_annotations(coco).entries("categories")) == categories
    assert json.loads(pq.read_schema(table).metadata[b"info"]) == {"description": "both"}


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    _, table = write(tmp_path, drawn())
    first = table.read_bytes()
    assert write(tmp_path, drawn())[1].read_bytes() == first


def test_other_tools_read_it(tmp_path: Path) -> None:
    _, table = write(tmp_path, drawn())
    read = pq.read_table(table)
    assert read.column("file_name").to_pylist() == [f"{index}.jpg" for index in range(9)]
    [first, second] = read.column("annotations")[2].as_py()
    assert (first["bbox"], first["area"], first["score"]) == ([3, 2, 9, 10], 90, pytest.approx(0.2))
    assert second["category_id"] == 2


def test_many_images_take_the_memory_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, read, and packed: Arrow's memory and Python's."""
    monkeypatch.setattr(parquet, "_GROUP_IMAGES", 50)
    [_, _, full] = drawn(3)
    texts = iter(np.random.default_rng(0).integers(0, 2**60, (1200, 8)))

    def content(count: int) -> Iterator[ImageAnnotations]:
        for index in range(count):
            counts = "".join(f"{number:x}" for number in next(texts))
            found = [{**entry, "segmentation": {"size": [20, 30], "counts": counts}} for entry in full["annotations"]]
            yield {**full, "file_name": f"{index}.jpg", "annotations": found}

    def peak(count: int) -> tuple[int, int]:
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        write_parquet(tmp_path / "a.parquet", content(count), "many")
        most = 0
        for entry in open_annotations(tmp_path / "a.parquet").entries("annotations"):
            if entry["id"] % 20 == 0:
                most = max(most, pa.total_allocated_bytes() - before)
        found = tracemalloc.get_traced_memory()[1], most
        tracemalloc.stop()
        return found

    (small, small_arrow), (large, large_arrow) = peak(200), peak(1000)
    assert large < 1.5 * small
    assert large_arrow < 1.1 * small_arrow


def test_what_is_no_such_file(tmp_path: Path) -> None:
    def refuses(message: str) -> None:
        for read in (LabelFile, read_truth):
            with pytest.raises(UsageError, match=message) as caught:
                read(tmp_path / "a.parquet")
            assert "a.parquet" in str(caught.value)

    refuses("cannot be read")
    (tmp_path / "a.parquet").write_bytes(b"no table")
    refuses("cannot be read")
    _, table = write(tmp_path, drawn())
    whole = table.read_bytes()
    table.write_bytes(whole[:-20])
    refuses("cannot be read")
    # The footer is whole, what it describes is not.
    table.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    refuses("cannot be read")
    pq.write_table(pa.table({"id": [1], "file_name": ["a.jpg"], "height": [3]}), table)
    refuses("column `width` is missing")
    columns = {"id": [1], "file_name": ["a.jpg"], "height": [3], "width": [3]}
    pq.write_table(pa.table({**columns, "annotations": [[1, 2]]}), table)
    refuses("not a list of structures")
    pq.write_table(pa.table({**columns, "annotations": [[{"id": 1, "counts": "xx"}]]}), table)
    refuses("`counts`")
    pq.write_table(pa.table({**columns, "height": [0], "annotations": [[{"id": 1, "counts": "xx"}]]}), table)
    refuses("must be positive")


def test_an_unknown_field_is_not_lost_silently(tmp_path: Path) -> None:
    [_, image] = drawn(2)
    image["annotations"][0]["colour"] = "red"
    with pytest.raises(ValueError, match="colour"):
        write_parquet(tmp_path / "a.parquet", [image], "")
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_has(tmp_path: Path) -> None:
    """The COCO file where both are there; a run with neither is an error."""
    (tmp_path / "result.json").write_text(json.dumps({"image_root": "/photos"}))
    with pytest.raises(UsageError, match=r"no annotations\.json"):
        find_labels(tmp_path, [])
    write_parquet(tmp_path / "annotations.parquet", drawn(), "")
    assert find_labels(tmp_path, []) == (tmp_path / "annotations.parquet", Path("/photos"))
    write_coco(tmp_path / "annotations.json", drawn, "")
    assert find_labels(tmp_path, []) == (tmp_path / "annotations.json", Path("/photos"))
    assert find_annotations(tmp_path) == tmp_path / "annotations.json"


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pyarrow") as caught:
        write_parquet(tmp_path / "a.parquet", drawn(), "")
    assert "figureground[parquet]" in str(caught.value.remedy)
