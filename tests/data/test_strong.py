"""Strongly varied images: what may change, and what not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from figureground.config import build
from figureground.data.strong import EraseConfig, StrongConfig, vary_strongly
from figureground.errors import ConfigError

STILL = {"jitter": 0, "grey": 0, "blur": 0, "erase": ()}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int, height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_promises(seed: int, height: int, width: int) -> None:
    image = noise(seed, height, width)
    before = image.clone()
    varied = vary_strongly(image, StrongConfig(), seeded(seed))
    assert (varied.shape, varied.dtype) == (image.shape, torch.uint8)
    assert torch.equal(image, before)
    assert torch.equal(varied, vary_strongly(image, StrongConfig(), seeded(seed)))


def test_each_part_by_itself() -> None:
    image = noise(0, 30, 40)
    assert torch.equal(vary_strongly(image, StrongConfig(**STILL), seeded(0)), image)
    grey = vary_strongly(image, StrongConfig(**{**STILL, "grey": 1}), seeded(0))
    assert grey[0].equal(grey[1])
    assert grey[0].equal(grey[2])
    assert not grey[0].equal(image[0])
    blurred = vary_strongly(image, StrongConfig(**{**STILL, "blur": 1, "blur_sigma": (2, 2)}), seeded(0))
    assert blurred.float().std() < 0.3 * image.float().std()
    torch.testing.assert_close(blurred.float().mean(), image.float().mean(), atol=3, rtol=0)
    coloured = vary_strongly(image, StrongConfig(**{**STILL, "jitter": 1}), seeded(0))
    assert not coloured.equal(image)


def test_how_often() -> None:
    image = noise(0, 12, 12)
    config = StrongConfig(**{**STILL, "grey": 0.2})
    grey = sum(not vary_strongly(image, config, seeded(seed)).equal(image) for seed in range(500))
    assert 70 < grey < 130


@pytest.mark.parametrize("aspect", [0.1, 1.0, 5.0])
def test_what_is_erased_is_a_rectangle_of_its_size(aspect: float) -> None:
    rectangle = EraseConfig(probability=1, area=(0.1, 0.1), aspect=(aspect, aspect))
    config = StrongConfig(**{**STILL, "erase": (rectangle,)})
    corners = set()
    for seed in range(20):
        image = torch.full((3, 60, 80), 128, dtype=torch.uint8)
        changed = (vary_strongly(image, config, seeded(seed)) != 128).any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert height / width == pytest.approx(aspect, rel=0.15)
        assert height * width == pytest.approx(480, rel=0.1)
        # Noise is 128 now and then.
        assert changed.sum() > 0.95 * height * width
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 10


def test_what_does_not_fit_is_not_erased() -> None:
    config = StrongConfig(**{**STILL, "erase": (EraseConfig(probability=1, area=(0.9, 0.9), aspect=(50, 50)),)})
    image = noise(0, 20, 20)
    assert vary_strongly(image, config, seeded(0)).equal(image)


@pytest.mark.parametrize(
    "wrong",
    [{"blur_sigma": (2, 1)}, {"blur": 2}, {"erase": [{"probability": 1, "area": (0.5, 0.1), "aspect": (1, 1)}]}],
)
def test_mistakes(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        build(StrongConfig, wrong)
