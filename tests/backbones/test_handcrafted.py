import pytest
import torch

from figureground.backbones.handcrafted import Handcrafted


def noise(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def halves(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cat([left, right], dim=3)


def cosines(values: torch.Tensor) -> torch.Tensor:
    flat = torch.nn.functional.normalize(values.flatten(0, 1), dim=1)
    return flat @ flat.T


def test_shapes_and_attributes():
    backbone = Handcrafted(patch_size=8)
    features = backbone(noise(2, 32, 48))
    assert features.values.shape == (2, 4, 6, backbone.width)
    assert features.values.dtype == torch.float32
    assert (features.patch_size, features.image_size, features.cls_attention) == (8, (32, 48), None)
    assert backbone.name == "handcrafted"
    assert not list(backbone.parameters())


def test_features_are_centred_and_scaled():
    features = Handcrafted()(noise(1, 64, 64)).values[0]
    torch.testing.assert_close(features.mean(dim=(0, 1)), torch.zeros(features.shape[-1]), atol=1e-5, rtol=0)
    # Three groups of unit mean square length.
    assert features.square().sum(dim=-1).mean().item() == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_constant_image_has_zero_features(level):
    features = Handcrafted()(torch.full((1, 3, 16, 24), level)).values
    torch.testing.assert_close(features, torch.zeros_like(features), atol=1e-4, rtol=0)


def test_one_patch_is_enough():
    assert torch.equal(Handcrafted()(noise(1, 8, 8)).values, torch.zeros(1, 1, 1, Handcrafted().width))


def stripes(height: int, width: int, upright: bool) -> torch.Tensor:
    pattern = (torch.arange(max(height, width)) // 2 % 2).float()
    image = pattern[None, :width].expand(height, width) if upright else pattern[:height, None].expand(height, width)
    return 0.25 + 0.5 * image.expand(1, 3, height, width)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        # The same texture in another colour, another orientation, another texture of the same mean.
        (
            torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1) + 0.1 * noise(1, 64, 48),
            torch.tensor([0.2, 0.2, 0.8]).view(1, 3, 1, 1) + 0.1 * noise(1, 64, 48),
        ),
        (stripes(64, 48, upright=True), stripes(64, 48, upright=False)),
        (0.4 + 0.2 * noise(1, 64, 48)[:, :1].expand(-1, 3, -1, -1), torch.full((1, 3, 64, 48), 0.5)),
    ],
    ids=["colour", "orientation", "texture"],
)
def test_two_materials_are_told_apart(left, right):
    values = Handcrafted()(halves(left, right)).values[0]
    h, w = values.shape[:2]
    inner = values[1:-1, [1, 2, 3, 4, w - 5, w - 4, w - 3, w - 2]]
    similarity = cosines(inner).view(h - 2, 8, h - 2, 8)
    assert similarity[:, :4, :, :4].mean() > 0.4
    assert similarity[:, 4:, :, 4:].mean() > 0.4
    assert similarity[:, :4, :, 4:].mean() < -0.2


def test_a_batch_gives_what_each_image_gives_alone():
    images, backbone = noise(2, 40, 56), Handcrafted()
    together = backbone(images).values
    alone = torch.cat([backbone(image[None]).values for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert torch.equal(together, backbone(images).values)


def test_a_mirrored_image_has_the_same_colours_mirrored():
    image, backbone = noise(1, 40, 56), Handcrafted()
    mirrored = backbone(image.flip(3)).values.flip(2)
    torch.testing.assert_close(mirrored[..., :12], backbone(image).values[..., :12], atol=1e-4, rtol=0)


def test_sides_that_are_no_multiples_are_refused():
    with pytest.raises(ValueError, match="multiples of 8 px, got 30x48"):
        Handcrafted()(noise(1, 30, 48))
    with pytest.raises(ValueError, match="positive"):
        Handcrafted(patch_size=0)
