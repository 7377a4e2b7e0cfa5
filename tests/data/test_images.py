import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from figureground.data.images import decode, load_image
from figureground.data.resize import resize_image, resize_on_device, shrink
from figureground.errors import ImageError
from tests.data.odd_images import BROKEN, USABLE, picture


@pytest.mark.parametrize("name", USABLE)
def test_every_usable_file_becomes_rgb(name: str, tmp_path: Path) -> None:
    USABLE["plain.jpg"](tmp_path / "plain.jpg")
    if name != "plain.jpg":
        USABLE[name](tmp_path / name)
    pixels, size = decode(tmp_path / name)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*size, 3)


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_file_says_why(name: str, tmp_path: Path) -> None:
    write, word = BROKEN[name]
    write(tmp_path / name)
    with pytest.raises(ImageError, match=word):
        load_image(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    # Left half red, right half blue, top left corner white: tells all eight apart.
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:, :32, 0] = 255
    upright[:, 32:, 2] = 255
    upright[:8, :8] = 255
    image = Image.fromarray(upright)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that undoes each orientation
    stored = image.transpose(Image.Transpose(back[orientation])) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    pixels, size = decode(tmp_path / "turned.png")
    assert size == (32, 64)
    np.testing.assert_array_equal(pixels, upright)


def test_a_large_jpeg_is_decoded_smaller_where_that_is_enough(tmp_path: Path) -> None:
    picture(1600, 800).save(tmp_path / "large.jpg")
    pixels, size = decode(tmp_path / "large.jpg", enough=lambda size: (size[0] // 4, size[1] // 4))
    assert size == (800, 1600)
    assert pixels.shape == (200, 400, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_what_is_much_too_large_is_shrunk_on_the_way(mode: str, tmp_path: Path) -> None:
    large = picture(800, 400).resize((801, 403))
    source = (
        Image.fromarray(np.asarray(large.convert("L")).astype(np.uint16)) if mode == "I;16" else large.convert(mode)
    )
    path = tmp_path / ("large.tif" if mode == "CMYK" else "large.png")
    source.save(path)
    whole, size = decode(path)
    pixels, same = decode(path, enough=lambda size: (size[0] // 9, size[1] // 9))
    assert size == same == (403, 801)
    assert pixels.shape == (101, 201, 3)  # four times smaller, and at least twice what is enough
    expected = resize_image(whole, (44, 89)).astype(int)
    assert np.abs(resize_image(pixels, (44, 89)).astype(int) - expected).mean() < 1.5


def test_decoding_in_threads_leaves_the_warnings_as_they_were(tmp_path: Path) -> None:
    picture(60, 40).save(tmp_path / "one.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(load_image, [tmp_path / "one.png"] * 40))) == 40
    assert warnings.filters == before


@pytest.mark.parametrize("size", [(60, 90), (40, 200), (33, 21), (120, 160), (8, 8)], ids=str)
def test_a_device_resizes_as_pillow_does(size: tuple[int, int]) -> None:
    # Within the range, even where the filter overshoots: there the order of the axes, which is Pillow's affair, shows.
    pixels = np.random.default_rng(0).integers(90, 140, (120, 160, 3), dtype=np.uint8)
    pixels[30:80, 40:120] = (180, 70, 90)
    shrunk = np.array(shrink(Image.fromarray(pixels), size))
    ours = resize_on_device(torch.from_numpy(shrunk), size).numpy().astype(int)
    apart = np.abs(ours - resize_image(shrunk, size))
    assert apart.max() <= 1


def test_transparency_lies_over_white_and_wide_grey_is_stretched(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (load_image(tmp_path / "clear.png") == 255).all()
    Image.fromarray(np.array([[1000, 1500, 2000]], np.uint16)).save(tmp_path / "wide.png")
    assert load_image(tmp_path / "wide.png")[0, :, 0].tolist() == [0, 128, 255]


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path)
