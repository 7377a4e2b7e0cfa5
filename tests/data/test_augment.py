"""Training images and their instances are varied together."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from figureground.config import build
from figureground.data.augment import AugmentConfig, augment, fitted
from figureground.data.targets import targets_of
from figureground.errors import ConfigError
from tests.data.blobs import check_targets, copied, random_targets, same

COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
NONE = targets_of(torch.zeros((0, 40, 60), dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.zeros(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def fixed(side: int, **values: Any) -> AugmentConfig:
    return AugmentConfig(short_sides=(side,), **{"flip_probability": 0, **values})


@settings(deadline=None, max_examples=600)
@given(
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    sides=st.lists(st.integers(8, 70), min_size=1, max_size=3),
    max_side=st.integers(8, 90),
    coloured=st.booleans(),
)
def test_promises(seed: int, size: tuple[int, int], sides: list[int], max_side: int, coloured: bool) -> None:
    rng = np.random.default_rng(seed)
    pixels, targets = noise(seed, size), random_targets(rng, int(rng.integers(0, 5)), size)
    original = pixels.copy(), copied(targets)
    config = AugmentConfig(short_sides=tuple(sides), max_side=max_side, **(COLOURS if coloured else {}))
    image, found = augment(pixels, targets, config, seeded(seed))
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    result = (image.shape[1], image.shape[2])
    assert result in {fitted(size, side, max_side) for side in sides}
    assert all(length <= most for length, most in zip(result, config.enough(size), strict=True))
    check_targets(found, result)
    # What is dropped goes with its label and its weight.
    known = dict(zip(targets["labels"].tolist(), targets["weights"].tolist(), strict=True))
    assert all(
        known[label] == weight
        for label, weight in zip(found["labels"].tolist(), found["weights"].tolist(), strict=True)
    )
    assert np.array_equal(pixels, original[0])
    assert same(targets, original[1])
    again, found_again = augment(pixels, targets, config, seeded(seed))
    assert torch.equal(image, again)
    assert same(found, found_again)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.integers(8, 80))
def test_masks_move_with_the_image(seed: int, side: int) -> None:
    """An image of the mask itself: they agree at every pixel, flipped or not."""
    rng = np.random.default_rng(seed)
    targets = random_targets(rng, 1, (40, 50))
    pixels = np.repeat(targets["masks"][0].numpy()[..., None], 3, axis=2).astype(np.uint8) * 255
    image, found = augment(pixels, targets, fixed(side, flip_probability=0.5), seeded(seed))
    expected = image[0] >= 128
    assert torch.equal(found["masks"][0], expected) if len(found["masks"]) else not bool(expected.any())


def test_an_object_keeps_its_share_of_the_image() -> None:
    targets = random_targets(np.random.default_rng(3), 5, (120, 160))
    for side in (40, 120, 200):
        _, found = augment(noise(0, (120, 160)), targets, fixed(side), seeded(0))
        shares = dict(zip(found["labels"].tolist(), found["masks"].float().mean((1, 2)).tolist(), strict=True))
        for label, mask in zip(targets["labels"].tolist(), targets["masks"], strict=True):
            if mask.float().mean() > 0.02:
                assert shares[label] == pytest.approx(float(mask.float().mean()), rel=0.1)


def test_an_instance_without_a_pixel_left_is_dropped() -> None:
    masks = torch.zeros((2, 80, 80), dtype=torch.bool)
    masks[0, 40, 40] = True
    masks[1, 10:50, 10:50] = True
    targets = targets_of(masks, torch.tensor([5, 7]), torch.tensor([0.25, 0.75]))
    _, found = augment(noise(0, (80, 80)), targets, fixed(20), seeded(0))
    assert (found["labels"].tolist(), found["weights"].tolist()) == ([7], [0.75])


def test_a_flip_mirrors_image_and_masks() -> None:
    pixels, targets = noise(0, (40, 60)), random_targets(np.random.default_rng(0), 4, (40, 60))
    straight, found = augment(pixels, targets, fixed(40), seeded(0))
    assert torch.equal(straight, torch.from_numpy(pixels).permute(2, 0, 1))
    assert same(found, targets)
    flipped, mirrored = augment(pixels, targets, fixed(40, flip_probability=1), seeded(0))
    assert torch.equal(flipped, straight.flip(-1))
    assert torch.equal(mirrored["masks"], targets["masks"].flip(-1))
    assert torch.equal(mirrored["boxes"][:, 0], 60 - targets["boxes"][:, 2])


def test_every_size_and_side_is_drawn() -> None:
    pixels = noise(0, (40, 60))
    config = AugmentConfig(short_sides=(20, 40, 50), max_side=66)
    drawn = Counter(augment(pixels, NONE, config, seeded(seed))[0].shape[1:] for seed in range(300))
    assert set(drawn) == {(20, 30), (40, 60), (44, 66)}
    assert min(drawn.values()) > 70
    straight = augment(pixels, NONE, fixed(40), seeded(0))[0]
    same_way = [
        torch.equal(augment(pixels, NONE, fixed(40, flip_probability=0.5), seeded(seed))[0], straight)
        for seed in range(300)
    ]
    assert 110 < sum(same_way) < 190


@pytest.mark.parametrize("name", sorted(COLOURS))
def test_colours(name: str) -> None:
    """Each changes the pixels, within its range, and nothing else."""
    pixels = noise(0, (40, 60)) // 2 + 64
    targets = random_targets(np.random.default_rng(0), 3, (40, 60))
    plain, found = augment(pixels, targets, fixed(40), seeded(1))
    changed, found_too = augment(pixels, targets, fixed(40, **{name: COLOURS[name]}), seeded(1))
    assert not torch.equal(plain, changed)
    assert same(found, found_too)
    if name == "brightness":
        ratios = [
            float(
                augment(pixels, NONE, fixed(40, brightness=0.4), seeded(seed))[0].float().mean() / plain.float().mean()
            )
            for seed in range(100)
        ]
        assert 0.59 < min(ratios) < 0.7
        assert 1.3 < max(ratios) < 1.41


def test_colours_do_not_change_the_geometry() -> None:
    pixels, targets = noise(0, (40, 60)), random_targets(np.random.default_rng(0), 3, (40, 60))
    for seed in range(20):
        config = AugmentConfig(short_sides=(20, 40, 50))
        plain, found = augment(pixels, targets, config, seeded(seed))
        changed, found_too = augment(pixels, targets, config.replace(**COLOURS), seeded(seed))
        assert plain.shape == changed.shape
        assert same(found, found_too)


def test_what_is_published() -> None:
    assert fitted((480, 640), 800, 1333) == (800, 1067)
    assert fitted((640, 480), 1024, 1333) == (1333, 1000)
    assert AugmentConfig().enough((480, 640)) == (1000, 1333)


def test_a_picture_that_may_not_be_written_to() -> None:
    pixels = noise(0, (40, 60))
    pixels.setflags(write=False)
    assert augment(pixels, NONE, fixed(40), seeded(0))[0].shape == (3, 40, 60)


@pytest.mark.parametrize("values", [{"short_sides": []}, {"short_sides": [4]}, {"flip_probability": 2}, {"hue": 0.6}])
def test_wrong_configurations(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build(AugmentConfig, values)
