import pytest
import torch

from figureground.ops.filters import gaussian_blur, otsu_threshold, to_unit_range
from figureground.ops.masks import mask_iou
from figureground.proposals import create
from figureground.structures import PatchFeatures
from tests.reference.filters import otsu


def disc_scene(
    radius: int = 40, height: int = 120, width: int = 160
) -> tuple[PatchFeatures, torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2
    images = torch.where(
        disc, torch.tensor([0.8, 0.2, 0.1])[:, None, None], torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    )
    features = PatchFeatures(torch.zeros(1, height // 8, width // 8, 4), 8, (height, width))
    return features, images[None], disc[4::8, 4::8]


@pytest.mark.parametrize("preset", ["default", "reference"])
def test_a_disc_is_found_and_is_the_surest(preset: str) -> None:
    features, images, disc = disc_scene()
    [found] = create("background", preset).propose(features, images)
    assert mask_iou(found.masks[:1], disc[None]).item() > 0.8
    assert found.scores[0] > 0.6


def test_two_discs_are_two_objects() -> None:
    features, images, _ = disc_scene(radius=25)
    both = PatchFeatures(features.values.repeat(1, 1, 2, 1), 8, (120, 320))
    [found] = create("background").propose(both, torch.cat([images, images], 3))
    y, x = torch.meshgrid(torch.arange(120), torch.arange(320), indexing="ij")
    discs = torch.stack([((y - 60) ** 2 + (x - centre) ** 2 < 25**2)[4::8, 4::8] for centre in (80, 240)])
    assert (mask_iou(found.masks, discs).amax(0) > 0.7).all()


def test_nothing_stands_out_of_nothing() -> None:
    features = PatchFeatures(torch.zeros(1, 10, 12, 4), 8, (80, 96))
    noise = 0.5 + 0.01 * torch.rand(1, 3, 80, 96, generator=torch.Generator().manual_seed(0))
    for images in (torch.full((1, 3, 80, 96), 0.5), noise):
        [found] = create("background", regions=()).propose(features, images)
        assert len(found) == 0


def test_an_object_that_leaves_the_picture_at_the_bottom() -> None:
    _, images, _ = disc_scene(radius=45)
    cut = images[..., :80, :]  # the lower border goes through the disc
    [found] = create("background").propose(PatchFeatures(torch.zeros(1, 10, 20, 4), 8, (80, 160)), cut)
    y, x = torch.meshgrid(torch.arange(80), torch.arange(160), indexing="ij")
    disc = ((y - 60) ** 2 + (x - 80) ** 2 < 45**2)[4::8, 4::8]
    assert mask_iou(found.masks[:1], disc[None]).item() > 0.7


def test_limits() -> None:
    features, images, _ = disc_scene()
    assert len(create("background", max_masks=1).propose(features, images)[0]) == 1
    [some] = create("background", min_score=0.0, max_masks=50).propose(features, images)
    overlaps = mask_iou(some.masks, some.masks) - torch.eye(len(some))
    assert overlaps.max() <= 0.7
    with pytest.raises(ValueError, match="pixels"):
        create("background").propose(features)


def test_otsu_by_trying_every_threshold() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.cat(
        [0.2 + 0.1 * torch.rand(1, 9, 8, generator=generator), 0.6 + 0.2 * torch.rand(1, 9, 4, generator=generator)], 2
    )
    assert otsu_threshold(maps).item() == pytest.approx(otsu(maps[0].numpy()), abs=1 / 64)
    assert 0.29 <= otsu_threshold(maps).item() <= 0.6


def test_blur_keeps_constants_and_mass() -> None:
    torch.testing.assert_close(gaussian_blur(torch.full((1, 2, 5, 7), 3.0), 1.5), torch.full((1, 2, 5, 7), 3.0))
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    blurred = gaussian_blur(point, 2.0)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert (blurred[0, 0, 10] * (torch.arange(21) - 10.0) ** 2).sum() / blurred[0, 0, 10].sum() == pytest.approx(
        4, rel=0.05
    )
    assert torch.equal(gaussian_blur(point, 0.0), point)
    assert not to_unit_range(torch.full((1, 3, 3), 2.0)).any()
