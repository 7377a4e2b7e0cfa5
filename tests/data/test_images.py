from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from figureground.data.images import decode, load_image
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


def test_transparency_lies_over_white_and_wide_grey_is_stretched(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (load_image(tmp_path / "clear.png") == 255).all()
    Image.fromarray(np.array([[1000, 1500, 2000]], np.uint16)).save(tmp_path / "wide.png")
    assert load_image(tmp_path / "wide.png")[0, :, 0].tolist() == [0, 128, 255]


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path)
