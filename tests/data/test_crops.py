"""Crops are cut where they should be, recoloured as torchvision does it, and all drawn from one generator."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision

from figureground.data import crops
from figureground.data.crops import CropsConfig, central_windows, multi_crop, random_windows, recolour, resample
from figureground.errors import ConfigError

PLAIN = CropsConfig(jitter=0, grey=0, flip=0, blur=(0, 0, 0), solarise=(0, 0, 0))
SMALL = {"global_size": 32, "local_size": 16, "local_count": 3}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(count: int = 4, side: int = 20, channels_last: bool = False) -> Tensor:
    shape = (count, side, side, 3) if channels_last else (count, 3, side, side)
    return torch.rand(shape, generator=draws(7))


def photographs(count: int = 6, side: int = 40) -> tuple[Tensor, Tensor]:
    pixels = torch.randint(0, 256, (count, side, side, 3), generator=draws(8), dtype=torch.uint8)
    return pixels, torch.linspace(0.5, 2, count)


class TestGeometry:
    @pytest.mark.parametrize("size", [5, 24, 60, 130])
    def test_is_pillows_resampling_of_a_box(self, size: int) -> None:
        """Smaller, larger, mirrored, up to the border: bicubic and antialiased."""
        images = some_images(5, 48, channels_last=True)
        windows = random_windows(torch.tensor([1.0, 2.0, 0.5, 1.3, 1.0]), (0.05, 1.0), (3 / 4, 4 / 3), draws())
        windows[4] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        mirrored = torch.tensor([False, True, False, True, False])
        found = resample(images, windows, mirrored, size)
        assert found.shape == (5, 3, size, size)
        for image, window, turned, crop in zip(images, windows.double() * 48, mirrored, found, strict=True):
            for channel in range(3):
                plane = Image.fromarray(image[..., channel].numpy(), mode="F")
                expected = np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC, box=tuple(window.tolist())))
                expected = expected[:, ::-1] if turned else expected
                np.testing.assert_allclose(crop[channel], expected.clip(0, 1), atol=1e-4)

    @pytest.mark.parametrize("shape", [(90, 60), (60, 120), (64, 64)])
    def test_squashing_is_undone(self, shape: tuple[int, int]) -> None:
        """A crop of the square is the crop of the photograph: the same place, in its own proportions."""
        height, width = shape
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        wave = 0.5 + 0.2 * np.sin(rows / 9) + 0.2 * np.cos(columns / 7)
        photograph = Image.fromarray(wave.astype(np.float32), mode="F")
        square = torch.from_numpy(np.array(photograph.resize((48, 48), Image.Resampling.LANCZOS)))
        aspects = torch.tensor([width / height])
        for seed in range(5):
            window = random_windows(aspects, (0.2, 0.8), (3 / 4, 4 / 3), draws(seed))
            crop = resample(square[None, :, :, None].expand(-1, -1, -1, 3), window, torch.tensor([False]), 24)[0, 0]
            box = window[0].double() * torch.tensor([width, height, width, height])
            left, top, right, bottom = box.tolist()
            assert 3 / 4 - 1e-4 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-4
            expected = photograph.resize((24, 24), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
            np.testing.assert_allclose(crop, np.asarray(expected), atol=0.02)

    def test_windows_are_spread_as_drawn(self) -> None:
        aspects = torch.ones(4000)
        x1, y1, x2, y2 = random_windows(aspects, (0.1, 0.6), (3 / 4, 4 / 3), draws()).unbind(1)
        assert min(x1.min(), y1.min()) >= 0
        assert max(x2.max(), y2.max()) <= 1 + 1e-6
        area, shape = (x2 - x1) * (y2 - y1), (x2 - x1) / (y2 - y1)
        # Uniform in the area and in the logarithm of the shape: every tenth holds a tenth.
        for values, low, high in ((area, 0.1, 0.6), (shape.log(), math.log(3 / 4), math.log(4 / 3))):
            counts = torch.histc(values, 10, low, high) / 4000
            assert counts.sum() == pytest.approx(1)
            assert float((counts - 0.1).abs().max()) < 0.025
        assert float((x1 + x2).mean() / 2) == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize("aspect", [1 / 5000, 0.1, 12.0, 5000.0])
    def test_where_no_window_fits_the_middle_is_taken(self, aspect: float) -> None:
        aspects = torch.full((50,), aspect)
        windows = random_windows(aspects, (0.9, 1.0), (3 / 4, 4 / 3), draws())
        width, height = windows[:, 2] - windows[:, 0], windows[:, 3] - windows[:, 1]
        wanted = min(max(aspect, 3 / 4), 4 / 3)
        torch.testing.assert_close(width * aspects / height, torch.full((50,), wanted), rtol=1e-3, atol=0)
        torch.testing.assert_close(torch.maximum(width, height), torch.ones(50))
        torch.testing.assert_close(windows[:, :2] + windows[:, 2:], torch.ones(50, 2), rtol=0, atol=1e-4)
        assert (
            resample(some_images(50, 16, channels_last=True), windows, torch.zeros(50, dtype=torch.bool), 8)
            .isfinite()
            .all()
        )

    def test_central_windows(self) -> None:
        found = central_windows(torch.tensor([2.0, 0.5, 1.0]))
        assert found.tolist() == [[0.25, 0, 0.75, 1], [0, 0.25, 1, 0.75], [0, 0, 1, 1]]


class TestColour:
    @pytest.mark.parametrize(
        ("name", "amount"),
        [
            *(("brightness", amount) for amount in (0.6, 1.4)),
            *(("contrast", amount) for amount in (0.6, 1.4)),
            *(("saturation", amount) for amount in (0.0, 0.8, 1.2)),
            *(("hue", amount) for amount in (-0.1, 0.1, 0.45)),
        ],
    )
    def test_is_torchvisions(self, name: str, amount: float) -> None:
        images = some_images()
        images[0, 1:] = images[0, :1]  # one of them grey
        images[1, :, :5] = 0
        amounts = torch.tensor([amount, amount, 0.0 if name == "hue" else 1.0, amount])
        found = getattr(crops, f"adjust_{name}")(images, amounts)
        expected = getattr(torchvision, f"adjust_{name}")(images, amount)
        # Its greys are weighed by 0.2989 and so on, and rounded.
        torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]], rtol=0, atol=2e-4)
        torch.testing.assert_close(found[2], images[2], rtol=0, atol=1e-6)

    def test_grey_and_solarise(self) -> None:
        images = some_images()
        torch.testing.assert_close(crops.greyscale(images), torchvision.rgb_to_grayscale(images), rtol=0, atol=2e-4)
        torch.testing.assert_close(crops.solarise(images), torchvision.solarize(images, 0.5))

    def test_blur_is_a_weighted_mean(self) -> None:
        images, sigmas = some_images(3, 9), [0.1, 0.7, 2.0]
        found = crops.blur(images, torch.tensor(sigmas))
        for image, sigma, blurred in zip(images, sigmas, found, strict=True):
            for row, column in ((0, 0), (4, 5), (8, 3)):
                weights = torch.tensor(
                    [
                        [math.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2)) for x in range(9)]
                        for y in range(9)
                    ]
                )
                expected = (image * weights).sum((1, 2)) / weights.sum()
                torch.testing.assert_close(blurred[:, row, column], expected)

    def test_nothing_is_changed_unless_it_is_drawn(self) -> None:
        images = some_images()
        torch.testing.assert_close(recolour(images.clone(), PLAIN, draws()), images, rtol=0, atol=1e-6)
        grey = recolour(images.clone(), PLAIN.replace(grey=0.5), draws())
        changed = (grey - images).abs().flatten(1).amax(1) > 1e-3
        assert 0 < int(changed.sum()) < 4
        assert torch.equal(grey[changed, 0], grey[changed, 1])

    def test_all_grey_is_memory_of_its_own(self) -> None:
        """What comes next changes some of the images in place."""
        grey = recolour(some_images(), PLAIN.replace(grey=1), draws())
        assert torch.equal(grey[:, 0], grey[:, 2])
        assert grey.is_contiguous()

    def test_strengths_are_bounds(self) -> None:
        images = torch.full((400, 3, 2, 2), 0.5)
        config = PLAIN.replace(jitter=1, brightness=0.3, contrast=0, saturation=0, hue=0)
        factors = recolour(images, config, draws())[:, 0, 0, 0] / 0.5
        assert 0.7 <= factors.min() < 0.71
        assert 1.29 < factors.max() <= 1.3


class TestViews:
    def test_two_large_ones_and_then_the_small_ones(self) -> None:
        views = multi_crop(*photographs(), PLAIN.replace(**SMALL), draws())
        assert [tuple(view.shape) for view in views] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 3
        assert all(float(view.min()) >= 0 and float(view.max()) <= 1 for view in views)
        assert not torch.equal(views[0], views[1])

    def test_are_the_cut_the_colours_and_the_blur_in_turn(self) -> None:
        pixels, aspects = photographs()
        config = CropsConfig(**SMALL, solarise=(0, 1, 0), blur=(1, 0, 0))
        generator = draws(3)
        expected = []
        for view in range(5):
            large = view < 2
            windows = random_windows(
                aspects, config.global_scale if large else config.local_scale, config.aspect, generator
            )
            mirrored = torch.rand(6, generator=generator) < 0.5
            crop = resample(pixels / 255, windows, mirrored, 32 if large else 16)
            crop = recolour(crop, config, generator)
            sigmas = 0.1 + 1.9 * torch.rand(6, generator=generator)
            torch.rand(6, generator=generator)
            crop = crops.blur(crop, sigmas) if view == 0 else crop
            torch.rand(6, generator=generator)
            expected.append(crops.solarise(crop) if view == 1 else crop)
        for found, wanted in zip(multi_crop(pixels, aspects, config, draws(3)), expected, strict=True):
            torch.testing.assert_close(found, wanted)

    def test_every_draw_is_the_generators(self) -> None:
        before = torch.get_rng_state()
        config = CropsConfig(**SMALL)
        one, same, other = (multi_crop(*photographs(), config, draws(seed)) for seed in (1, 1, 2))
        assert all(torch.equal(*pair) for pair in zip(one, same, strict=True))
        assert not any(torch.equal(*pair) for pair in zip(one, other, strict=True))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
    def test_are_the_same_on_another_device(self) -> None:
        pixels, aspects = photographs()
        config = CropsConfig(**SMALL)
        here, there = (multi_crop(pixels.to(device), aspects, config, draws()) for device in ("cpu", "cuda"))
        for left, right in zip(here, there, strict=True):
            torch.testing.assert_close(left, right.cpu(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"global_scale": (0.5, 0.2)}, {"local_scale": (0.1, 1.5)}, {"blur": (0.5, 2, 0)}, {"blur_sigma": (0, 1)}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError):
        PLAIN.replace(**wrong)
