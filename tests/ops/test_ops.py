import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from figureground.ops.components import component_at, label_components, spread_labels
from figureground.ops.masks import mask_iou, masks_to_boxes, resize_masks
from figureground.ops.rle import decode, encode

maps = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=12)).map(torch.from_numpy)


@given(maps)
def test_boxes_are_the_extent(masks: torch.Tensor) -> None:
    for mask, box in zip(masks, masks_to_boxes(masks), strict=True):
        rows, columns = np.nonzero(mask.numpy())
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert box.tolist() == expected


@given(maps)
def test_iou_by_counting(masks: torch.Tensor) -> None:
    for i, row in enumerate(mask_iou(masks, masks)):
        for j, value in enumerate(row):
            union = int((masks[i] | masks[j]).sum())
            assert value.item() == pytest.approx(int((masks[i] & masks[j]).sum()) / union if union else 0)


@given(maps)
def test_rle_round_trip(masks: torch.Tensor) -> None:
    assert torch.equal(decode(encode(masks)), masks)


def test_rle_of_nothing() -> None:
    assert encode(torch.zeros((0, 4, 4), dtype=torch.bool)) == []
    assert len(decode([])) == 0


@given(maps)
def test_components_are_the_same_on_any_device(masks: torch.Tensor) -> None:
    assert torch.equal(label_components(masks), spread_labels(masks))


def test_diagonal_neighbours_are_not_connected() -> None:
    assert label_components(torch.eye(3, dtype=torch.bool)[None]).max() == 3


def test_component_at_the_seed() -> None:
    masks = torch.tensor([[[1, 0, 1], [1, 0, 1]]], dtype=torch.bool).expand(3, 2, 3)
    kept = component_at(masks, torch.tensor([0, 2, 1]))
    assert kept[0].tolist() == [[True, False, False]] * 2
    assert kept[1].tolist() == [[False, False, True]] * 2
    assert not kept[2].any()


@given(maps, st.integers(1, 20), st.integers(1, 20))
def test_resize_keeps_number_and_size(masks: torch.Tensor, height: int, width: int) -> None:
    assert resize_masks(masks, (height, width)).shape == (len(masks), height, width)


def test_resize_whole_factors() -> None:
    masks = torch.zeros((1, 6, 6), dtype=torch.bool)
    masks[:, 2:4, 2:5] = True
    large = resize_masks(masks, (60, 60))
    assert mask_iou(large, masks.repeat_interleave(10, 1).repeat_interleave(10, 2)) > 0.9
    assert torch.equal(resize_masks(large, (6, 6)), masks)
    assert resize_masks(masks[:0], (3, 4)).shape == (0, 3, 4)
