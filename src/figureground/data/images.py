"""Decode any image file to RGB, or say in a sentence why not."""

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from figureground.errors import ImageError

# Pillow's own limit against decompression bombs: twice its warning level.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
Size = tuple[int, int]
_WIDE_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def load_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image to RGB, EXIF orientation applied, first frame, transparency laid over white.

    Grey images of more than 8 bits are stretched from their own darkest to their own brightest value: microscopes and
    depth cameras rarely fill the range of the file.

    Raises:
        ImageError: If the file is missing, unreadable, damaged, no image, or too large to be decoded safely.
    """
    return decode(path)[0]


def decode(
    source: str | os.PathLike[str] | bytes, enough: Callable[[Size], Size] | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], Size]:
    """Decode an image and tell the size it has on disk.

    Args:
        source: The file, or what it holds.
        enough: From the whole ``(height, width)`` to one that is enough: a JPEG may then be decoded at a half, a
            quarter or an eighth of its size, which is many times faster; ``None`` decodes it whole.

    Returns:
        The pixels, and ``(height, width)`` of the whole image after the EXIF orientation.

    Raises:
        ImageError: As :func:`load_image`.
    """
    try:
        with warnings.catch_warnings():
            # Between Pillow's warning and its refusal there is nothing to say; damaged metadata is not our concern.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return _to_rgb(image, enough)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"The image has more than {MAX_PIXELS // 10**6} million pixels: refused as too large."
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("The file does not exist (a broken link?).") from None
    except IsADirectoryError:
        raise ImageError("This is a folder that cannot be read.") from None
    except PermissionError:
        raise ImageError("The file may not be read (permission denied).") from None
    except UnidentifiedImageError:
        empty = not (source if isinstance(source, bytes) else Path(source).stat().st_size)
        raise ImageError("The file is empty." if empty else "The file is not an image this program can read.") from None
    except MemoryError:
        raise ImageError("The image does not fit in memory.") from None
    except Exception as error:  # decoders raise what they like on damaged files
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ImageError(f"The image is damaged or cut short ({detail}).") from None


def read_size(path: str | os.PathLike[str]) -> Size | None:
    """``(height, width)`` after the EXIF orientation, from the head of the file; ``None`` where there is no telling."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return _size(image)[0]
    except Exception:  # what is wrong with the file is said when it is decoded
        return None


def _size(image: Image.Image) -> tuple[Size, bool]:
    """The size once turned, and whether turning swaps the sides."""
    width, height = image.size
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return ((width, height) if turned else (height, width)), turned


def _to_rgb(image: Image.Image, enough: Callable[[Size], Size] | None) -> tuple[np.ndarray, Size]:
    size, turned = _size(image)
    if enough is not None and image.format == "JPEG":
        wanted = enough(size)
        image.draft(None, wanted if turned else (wanted[1], wanted[0]))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _WIDE_GREY:
        return _stretch(np.asarray(image)), size
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), size


def _stretch(grey: np.ndarray) -> np.ndarray:
    values = grey.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("The image holds NaN or infinite values.")
    low, high = values.min(), values.max()
    scaled = np.rint((values - low) * (255 / (high - low))) if high > low else np.full_like(values, 127)
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, axis=2)
