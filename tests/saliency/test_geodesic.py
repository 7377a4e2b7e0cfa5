import numpy as np
import pytest
import torch

from figureground.saliency.colour import lab_from_rgb, patch_lab
from figureground.saliency.geodesic import geodesic_background, geodesic_distance, shortest_paths, step_costs
from tests.reference import geodesic as reference


def noise(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def disc(height: int = 96, width: int = 128, centre: tuple[int, int] = (48, 64), radius: int = 28) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    image = torch.tensor([0.2, 0.5, 0.2])[:, None, None].expand(3, height, width).clone()
    image[:, inside] = torch.tensor([0.9, 0.3, 0.2])[:, None]
    return image[None]


@pytest.mark.parametrize("shape", [(7, 9), (5, 5), (1, 6), (6, 1), (2, 11)])
def test_shortest_paths_agree_with_dijkstra(shape):
    h, w = shape
    lab = lab_from_rgb(noise(1, h, w))
    right, down = step_costs(lab)
    start = torch.full((1, 2, h, w), torch.inf)
    start[0, 0, 0, 0] = 0
    start[0, 1, h - 1, w // 2] = 0
    start[0, 1, h // 2, 0] = 0
    found = shortest_paths(start, right, down)[0]
    costs = reference.step_costs(lab[0].permute(1, 2, 0).numpy().astype(float))
    expected = [reference.distances(costs, sources, shape) for sources in ([(0, 0)], [(h - 1, w // 2), (h // 2, 0)])]
    # Each step is rounded to 1 / 256, so a path of n steps may be off by n / 512.
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=h * w / 512)


def test_shortest_paths_wind_through_a_maze():
    # Free corridors inside walls of cost 1: down the first column, up the third, down the fifth.
    h, w = 6, 5
    right, down = torch.ones(1, h, w - 1), torch.zeros(1, h - 1, w)
    right[0, -1, :2] = 0
    right[0, 0, 2:] = 0
    start = torch.full((1, 1, h, w), torch.inf)
    start[0, 0, 0, 0] = 0
    assert torch.equal(shortest_paths(start, right, down), torch.zeros(1, 1, h, w))


def test_without_a_source_everything_is_infinitely_far():
    start = torch.full((1, 1, 3, 4), torch.inf)
    assert torch.equal(shortest_paths(start, torch.ones(1, 3, 3), torch.ones(1, 2, 4)), start)


def test_a_disc_on_a_plain_ground_is_found():
    background = geodesic_background(disc(), patch_size=8)[0]
    assert background.shape == (12, 16)
    assert background[4:8, 6:10].max() < 0.1
    assert background[[0, -1]].min() == 1
    assert background[:, [0, -1]].min() == 1
    assert background[1, 1] > 0.9


def test_a_batch_gives_what_each_image_gives_alone():
    images = torch.cat([disc(), noise(1, 96, 128)])
    together = geodesic_background(images)
    assert torch.equal(together, torch.cat([geodesic_background(image[None]) for image in images]))
    assert torch.equal(together, geodesic_background(images))


@pytest.mark.parametrize("size", [(32, 64), (8, 64), (64, 8), (1, 1), (40, 40)])
def test_a_constant_image_is_all_background(size):
    assert torch.equal(
        geodesic_background(torch.full((2, 3, *size), 0.4)),
        torch.ones(2, -(-size[0] // 8), -(-size[1] // 8)),
    )


@pytest.mark.parametrize("size", [(8, 96), (96, 8), (16, 96)])
def test_where_all_patches_touch_the_border_all_is_background(size):
    assert torch.equal(geodesic_background(noise(1, *size)), torch.ones(1, size[0] // 8, size[1] // 8))


def test_faint_noise_is_no_figure():
    image = 0.5 + 0.004 * (noise(1, 96, 96) - 0.5)
    assert geodesic_background(image).min() > 0.8


def test_the_last_patches_may_be_narrow():
    image = disc(91, 125)
    assert geodesic_background(image, 8).shape == (1, 12, 16)
    wide = patch_lab(image, 8)
    torch.testing.assert_close(wide[..., -1, -1], lab_from_rgb(image)[..., 88:, 120:].mean(dim=(2, 3)))


def test_lab_of_known_colours():
    # CIE 15 under D65: white, black, pure red and pure blue.
    colours = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]).T[None, :, :, None]
    expected = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    torch.testing.assert_close(lab_from_rgb(colours)[0, :, :, 0].T, expected, atol=0.05, rtol=0)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="positive patch size"):
        geodesic_background(torch.zeros(1, 3, 8, 8), patch_size=0)
    with pytest.raises(ValueError, match="pixels"):
        geodesic_background(torch.zeros(1, 3, 0, 8))
    with pytest.raises(ValueError, match="min_contrast"):
        geodesic_background(torch.zeros(1, 3, 8, 8), min_contrast=0.0)


def test_a_toll_at_the_bottom_keeps_a_figure_that_stands_on_it():
    lab = patch_lab(disc(centre=(80, 64)), 8)
    assert geodesic_distance(lab)[0, -1, 7] == 0
    far = geodesic_distance(lab, bottom=100.0).max().item()
    tolled = geodesic_distance(lab, bottom=0.5)[0]
    assert tolled[-1, 7].item() == pytest.approx(0.5 * far, abs=0.01)
    assert tolled[-1, 0] == 0
    # The ground reaches the bottom from the sides for nothing.
    assert tolled[:, :3].max() == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_the_accelerator_gives_the_same():
    images = torch.cat([disc(), noise(1, 96, 128)])
    torch.testing.assert_close(geodesic_background(images.cuda()).cpu(), geodesic_background(images), atol=1e-3, rtol=0)
