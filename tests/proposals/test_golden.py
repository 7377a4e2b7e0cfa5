import numpy as np
import pytest
import torch

from figureground.proposals import create
from figureground.structures import PatchFeatures
from tests.conftest import golden


@pytest.mark.parametrize("path", golden("cut/*.npz"))
def test_cuts_are_those_of_the_published_code(path) -> None:
    file = np.load(path)
    values = torch.from_numpy(file["features"])
    h, w = values.shape[:2]
    features = PatchFeatures(values[None], 8, (h * 8, w * 8))

    [found] = create("maskcut", preset="reference").propose(features)
    expected = [mask for mask in file["maskcut_masks"] if mask.any()]
    assert len(found) == len(expected)
    for mask, golden_mask in zip(found.masks, expected, strict=True):
        np.testing.assert_array_equal(mask.numpy(), golden_mask)

    [found] = create("tokencut", preset="reference").propose(features)
    np.testing.assert_array_equal(found.masks[0].numpy(), file["tokencut_mask"])
    assert (found.boxes[0] * 8).tolist() == file["tokencut_box"].tolist()
