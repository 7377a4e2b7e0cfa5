import numpy as np
import pytest
import torch
from scipy import ndimage

from figureground.refine import fill_holes


@pytest.mark.parametrize("share", [0.3, 0.5, 0.6, 0.8])
def test_agrees_with_scipy(share):
    masks = torch.rand(4, 23, 31, generator=torch.Generator().manual_seed(0)) < share
    expected = np.stack([ndimage.binary_fill_holes(mask) for mask in masks.numpy()])
    assert np.array_equal(fill_holes(masks).numpy(), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (6, 9)], ids=str)
def test_empty_stays_empty_and_full_stays_full(size):
    masks = torch.stack([torch.zeros(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)])
    assert torch.equal(fill_holes(masks), masks)


def test_a_hole_open_at_a_corner_only_is_filled():
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2, 2] = mask[1, 1] = mask[0, 0] = False  # joined along a diagonal: not 4-connected
    filled = fill_holes(mask[None])[0]
    assert filled[1, 1]
    assert filled[2, 2]
    assert not filled[0, 0]


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5)], ids=str)
def test_nothing_gives_nothing(shape):
    assert fill_holes(torch.zeros(shape, dtype=torch.bool)).shape == shape
