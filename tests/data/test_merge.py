"""Merging predictions into pseudo-labels: as a slow reference does it, and from file to file."""

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from figureground.config import build
from figureground.data.coco import write_coco
from figureground.data.merge import MergeConfig, MergeCounts, merge, merge_files
from figureground.data.truth import read_predictions, read_truth
from figureground.errors import ConfigError, UsageError
from figureground.ops.rle import decode, encode
from tests.data.blobs import random_masks
from tests.reference import merge as reference

Entry = dict[str, Any]


def entries(masks: torch.Tensor, scores: Sequence[float | None]) -> list[Entry]:
    return [
        {"segmentation": rle, "score": score, "category_id": 1}
        for rle, score in zip(encode(masks), scores, strict=True)
    ]


def pixels(mask: torch.Tensor) -> reference.Mask:
    return frozenset((row, column) for row, column in mask.nonzero().tolist())


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Older masks and predictions that are like each other; one of 20 is empty, and scores tie."""
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(2, 14)), int(rng.integers(2, 14)))
    masks = random_masks(rng, 8, size)
    both = masks[torch.from_numpy(rng.integers(0, 8, 12))] ^ torch.from_numpy(rng.random((12, *size)) < 0.15)
    both[torch.from_numpy(rng.random(12) < 0.05)] = False
    older, found = (int(count) for count in rng.integers(0, 7, 2))
    return both[:older], both[6 : 6 + found], [float(score) for score in rng.integers(0, 11, found) / 10]


CONFIGS = st.builds(
    MergeConfig,
    min_score=st.sampled_from([0.0, 0.2, 0.5, 0.7]),
    max_overlap=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    nms=st.sampled_from([None, 0.25, 0.5, 1.0]),
)


@settings(deadline=None, max_examples=1000)
@given(st.integers(0, 2**32), CONFIGS)
def test_as_the_reference(seed: int, config: MergeConfig) -> None:
    older, found, scores = random_case(seed)
    previous, predictions = entries(older, [None] * len(older)), entries(found, scores)
    merged, counts = merge(previous, predictions, config)
    kept, taken = reference.merge(
        [pixels(mask) for mask in older],
        [(pixels(mask), score) for mask, score in zip(found, scores, strict=True)],
        config.min_score,
        config.max_overlap,
        config.nms,
    )
    expected = [*(previous[index] for index in kept), *(predictions[index] for index in taken)]
    assert [entry["segmentation"] for entry in merged] == [entry["segmentation"] for entry in expected]
    assert [entry["score"] for entry in merged] == [1.0] * len(kept) + [scores[index] for index in taken]
    for entry in merged:
        [mask] = decode([entry["segmentation"]])
        rows, columns = (values.tolist() for values in mask.nonzero(as_tuple=True))
        x, y = min(columns), min(rows)
        assert entry["bbox"] == [x, y, max(columns) + 1 - x, max(rows) + 1 - y]
        assert entry["area"] == len(rows)
    assert (counts.kept, counts.added) == (len(kept), len(taken))
    whole = counts.kept + counts.replaced + counts.added + counts.unsure + counts.repeated + counts.empty
    assert whole == len(previous) + len(predictions)
    assert counts.unsure == sum(score < config.min_score for score in scores)
    assert min(astuple(counts)) >= 0


def strip(first: int, last: int) -> torch.Tensor:
    """One row of a hundred pixels."""
    mask = torch.zeros((1, 1, 100), dtype=torch.bool)
    mask[..., first:last] = True
    return mask


@pytest.mark.parametrize(("end", "stays"), [(50, False), (49, True)])
def test_an_overlap_of_just_a_half_replaces(end: int, stays: bool) -> None:
    merged, counts = merge(entries(strip(0, 100), [0.4]), entries(strip(0, end), [0.9]), MergeConfig())
    assert len(merged) == 1 + stays
    assert (counts.kept, counts.replaced, counts.added) == (int(stays), int(not stays), 1)


def test_a_score_of_just_the_threshold_counts() -> None:
    found = torch.cat([strip(0, 10), strip(20, 30)])
    merged, counts = merge([], entries(found, [0.7, 0.6999]), MergeConfig())
    assert [entry["score"] for entry in merged] == [0.7]
    assert (counts.added, counts.unsure) == (1, 1)


def test_a_prediction_that_is_not_used_replaces_nothing() -> None:
    """Neither an unsure one nor one that a surer one overlaps."""
    previous = entries(strip(30, 60), [0.4])
    assert merge(previous, entries(strip(30, 60), [0.6]), MergeConfig())[1].kept == 1
    # The second overlaps the first by a half, and the older mask by more than that.
    found = entries(torch.cat([strip(0, 40), strip(20, 60)]), [0.9, 0.8])
    merged, counts = merge(previous, found, MergeConfig(nms=0.3))
    assert (counts.kept, counts.added, counts.repeated) == (1, 1, 1)
    merged, counts = merge(previous, found, MergeConfig(nms=None))
    assert (counts.kept, counts.added, counts.replaced) == (0, 2, 1)
    assert len(merged) == 2


def test_masks_of_two_sizes() -> None:
    wide = torch.ones((1, 4, 6), dtype=torch.bool)
    with pytest.raises(UsageError, match="4x6, 6x4"):
        merge(entries(wide, [0.5]), entries(wide.mT, [0.9]), MergeConfig())


def test_a_prediction_without_a_score() -> None:
    with pytest.raises(UsageError, match="`score` is missing for 1 of 2"):
        merge([], entries(torch.cat([strip(0, 9), strip(20, 30)]), [0.9, None]), MergeConfig())


@pytest.mark.parametrize("values", [{"min_score": 2}, {"max_overlap": 0}, {"nms": 0}, {"overlap": 0.5}])
def test_wrong_configurations(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build(MergeConfig, values)


def write(path: Path, images: dict[str, list[Entry]], size: tuple[int, int] = (1, 100)) -> Path:
    listed = [
        {"file_name": name, "height": size[0], "width": size[1], "annotations": [_with_box(e) for e in found]}
        for name, found in images.items()
    ]
    write_coco(path, lambda: listed, "test")  # type: ignore[arg-type]
    return path


def _with_box(entry: Entry) -> Entry:
    return {key: value for key, value in {**entry, "bbox": [0, 0, 1, 1], "area": 1}.items() if value is not None}


def test_predictions_may_take_the_place_of_all() -> None:
    older = entries(torch.cat([strip(0, 50), strip(60, 90)]), [None, 0.3])
    found = entries(torch.cat([strip(0, 95), strip(0, 94), strip(3, 50), strip(4, 5)]), [0.9, 0.3, 0.8, 0.2])
    config = MergeConfig(min_score=0.3, nms=None, keep_older=False, max_width=0.95)
    merged, counts = merge(older, found, config)
    assert [(entry["bbox"][0], entry["area"], entry["score"]) for entry in merged] == [(3, 47, 0.8), (0, 94, 0.3)]
    assert counts == MergeCounts(kept=0, replaced=2, added=2, unsure=1, wide=1)
    assert merge(older, [], config) == ([], MergeCounts(replaced=2))


def test_categories_come_along(files: tuple[Path, Path, Path]) -> None:
    previous, predictions, out = files
    for file, categories in ((previous, [{"id": 7, "name": "dog"}]), (predictions, [{"id": 2, "name": "cat"}])):
        content = json.loads(file.read_text()) | {"categories": categories}
        for entry in content["annotations"]:
            entry["category_id"] = categories[0]["id"]
        file.write_text(json.dumps(content))
    counts = merge_files(previous, predictions, out, MergeConfig())
    content = json.loads(out.read_text())
    assert content["categories"] == [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}]
    found = [entry["category_id"] for entry in content["annotations"]]
    assert (found.count(7), found.count(2)) == (counts.kept, counts.added)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    previous = write(
        tmp_path / "previous.json",
        {
            "both.jpg": entries(torch.cat([strip(0, 50), strip(60, 90)]), [None, 0.3]),
            "old.jpg": entries(strip(5, 25), [0.2]),
            "nothing.jpg": [],
        },
    )
    predictions = write(
        tmp_path / "predictions.json",
        {
            "new.jpg": entries(strip(1, 4), [0.8]),
            "nothing.jpg": [],
            "both.jpg": entries(
                torch.cat([strip(2, 50), strip(3, 50), strip(55, 58), strip(92, 99)]), [1, 0.9, 0.8, 0]
            ),
        },
    )
    return previous, predictions, tmp_path / "merged.json"


def test_files(files: tuple[Path, Path, Path]) -> None:
    counts = merge_files(*files, MergeConfig())
    assert counts == MergeCounts(kept=2, replaced=1, added=3, unsure=1, repeated=1, empty=0, images=4, new_images=1)
    merged = read_truth(files[2])
    assert [image.file_name for image in merged.images] == ["both.jpg", "old.jpg", "nothing.jpg", "new.jpg"]
    found = {image.file_name: [(a.bbox, a.area) for a in merged.of(image)] for image in merged.images}
    assert found == {
        "both.jpg": [((60, 0, 30, 1), 30), ((2, 0, 48, 1), 48), ((55, 0, 3, 1), 3)],
        "old.jpg": [((5, 0, 20, 1), 20)],
        "nothing.jpg": [],
        "new.jpg": [((1, 0, 3, 1), 3)],
    }
    scores = [annotation.score for annotation in read_predictions(files[2], merged).all()]
    assert scores == [0.3, 1.0, 0.8, 0.2, 0.8]


def test_a_file_merged_with_itself_or_with_nothing_is_the_same(files: tuple[Path, Path, Path]) -> None:
    previous, predictions, out = files
    merge_files(previous, predictions, out, MergeConfig())
    first = json.loads(out.read_text())["annotations"]
    counts = merge_files(out, write(out.with_name("empty.json"), {}), out, MergeConfig())
    assert json.loads(out.read_text())["annotations"] == first
    assert (counts.kept, counts.images) == (5, 4)
    counts = merge_files(out, out, out, MergeConfig(min_score=0))
    assert (counts.replaced, counts.added, counts.kept) == (5, 5, 0)
    again = json.loads(out.read_text())["annotations"]
    assert sorted(entry["area"] for entry in again) == sorted(entry["area"] for entry in first)


def test_a_new_round_needs_no_other_file(files: tuple[Path, Path, Path]) -> None:
    """Predictions for all that the last round holds, nothing for the next: every image and mask is still there."""
    previous, _, out = files
    merge_files(previous, write(out.with_name("few.json"), {"old.jpg": []}), out, MergeConfig())
    before, after = read_truth(previous), read_truth(out)
    assert [image.file_name for image in before.images] == [image.file_name for image in after.images]
    assert [entry.mask for entry in before.all()] == [entry.mask for entry in after.all()]


def test_what_is_wrong_is_said_and_nothing_is_written(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    previous, predictions, out = files
    other = write(tmp_path / "other.json", {"x.jpg": entries(strip(0, 3), [0.9])})
    turned = write(tmp_path / "turned.json", {"old.jpg": entries(strip(0, 50).mT, [0.9])}, (100, 1))
    turned_empty = write(tmp_path / "turned_empty.json", {"nothing.jpg": entries(strip(0, 50).mT, [0.9])}, (100, 1))
    unscored = write(tmp_path / "unscored.json", {"old.jpg": entries(strip(0, 50), [None])})
    empty = write(tmp_path / "short.json", {"old.jpg": entries(strip(0, 50)[..., :60], [0.9])})
    twice = json.loads(predictions.read_text())
    twice["images"].append({**twice["images"][0], "id": 77})
    (tmp_path / "twice.json").write_text(json.dumps(twice))
    for wrong, message in [
        (other, "no `file_name` in common"),
        (turned, "'old.jpg' has 100x1 px, but its pseudo-labels have 1x100"),
        (turned_empty, "'nothing.jpg' has 100x1 px"),
        (unscored, "'old.jpg'.*`score` is missing"),
        (empty, "`size` .* is not the height and width"),
        (tmp_path / "twice.json", "'new.jpg' is given twice"),
        (tmp_path / "missing.json", "cannot be read"),
    ]:
        with pytest.raises(UsageError, match=message):
            merge_files(previous, wrong, out, MergeConfig())
    assert not out.exists()
