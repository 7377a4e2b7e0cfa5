import numpy as np
import pytest
import torch

from figureground.saliency import robust
from figureground.saliency.geodesic import step_costs
from figureground.saliency.robust import robust_background
from tests.reference import geodesic as reference
from tests.saliency.test_geodesic import disc, noise


def test_a_disc_on_a_plain_ground_is_found():
    background = robust_background(disc(), patch_size=8)[0]
    assert background.shape == (12, 16)
    assert background[4:8, 6:10].max() < 0.3
    assert background[[0, -1]].min() > 0.9


def test_a_figure_that_touches_one_border_is_still_found():
    background = robust_background(disc(centre=(76, 64)), patch_size=8)[0]
    # The lowest row of the figure lies on the border of the image.
    assert background[11, 7:9].max() < 0.5
    assert background[8:11, 6:10].max() < 0.4
    assert background[0].min() > 0.9


def test_the_background_weight_agrees_with_its_definition():
    lab = torch.nn.functional.interpolate(noise(1, 3, 4), size=(5, 7), mode="bilinear") * 60
    found = robust._background_weight(lab, colour_sigma=10.0, connectivity_sigma=1.0)[0].view(5, 7)
    assert step_costs(lab)[0].max() > 1  # Otherwise the test is empty.
    costs = reference.step_costs(lab[0].permute(1, 2, 0).numpy().astype(float))
    for i, j in [(0, 0), (2, 3), (4, 6), (3, 1)]:
        distance = reference.distances(costs, [(i, j)], (5, 7))
        same = np.exp(-(distance**2) / 200)
        border = same.sum() - same[1:-1, 1:-1].sum()
        expected = 1 - np.exp(-(border**2 / same.sum()) / 2)
        assert found[i, j].item() == pytest.approx(expected, abs=0.01)


def test_a_batch_gives_what_each_image_gives_alone():
    images = torch.cat([disc(), noise(1, 96, 128)])
    together = robust_background(images)
    alone = torch.cat([robust_background(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert torch.equal(together, robust_background(images))


@pytest.mark.parametrize("size", [(32, 64), (16, 64), (64, 16), (1, 1), (50, 70)])
def test_a_constant_image_is_all_background(size):
    background = robust_background(torch.full((2, 3, *size), 0.4))
    torch.testing.assert_close(background, torch.ones(2, -(-size[0] // 16), -(-size[1] // 16)), atol=1e-3, rtol=0)


def test_values_are_probabilities():
    background = robust_background(noise(2, 64, 100))
    assert background.shape == (2, 4, 7)
    assert background.dtype == torch.float32
    assert background.min() >= 0
    assert background.max() <= 1


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="sigmas"):
        robust_background(torch.zeros(1, 3, 16, 16), colour_sigma=0.0)
    with pytest.raises(ValueError, match="positive patch size"):
        robust_background(torch.zeros(1, 3, 16, 16), patch_size=0)
