"""Decode any image file to RGB, or say in a sentence why not."""

import io
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from figureground.data.resize import shrink
from figureground.errors import ImageError

# Pillow's own limit against decompression bombs: twice its warning level.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
Size = tuple[int, int]
# Images above this are decoded one at a time, however many threads decode: each takes several bytes a pixel.
_LARGE_PIXELS = 2**25
_alone = threading.Lock()
_ORIENTATION = 0x0112
_SIDES_SWAPPED = (5, 6, 7, 8)
_WIDE_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


class _Silence:
    """No warnings while any thread is inside; Python's own context is that of one thread alone."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                # Between Pillow's warning and its refusal there is nothing to say; damaged metadata is not our concern.
                warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._before.__exit__(None, None, None)


_silent = _Silence()


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
            quarter or an eighth of its size, which is many times faster, and what is four times as large or more is
            shrunk; ``None`` decodes it whole.

    Returns:
        The pixels, and ``(height, width)`` of the whole image after the EXIF orientation.

    Raises:
        ImageError: As :func:`load_image`.
    """
    try:
        with _silent, Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
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
        with _silent, Image.open(path) as image:
            return _size(image)[0]
    except Exception:  # what is wrong with the file is said when it is decoded
        return None


def _size(image: Image.Image) -> tuple[Size, int]:
    """The size once turned, and the EXIF orientation."""
    width, height = image.size
    orientation = image.getexif().get(_ORIENTATION, 1)
    return ((width, height) if orientation in _SIDES_SWAPPED else (height, width)), orientation


def _to_rgb(image: Image.Image, enough: Callable[[Size], Size] | None) -> tuple[np.ndarray, Size]:
    size, orientation = _size(image)
    with _alone if image.width * image.height > _LARGE_PIXELS else nullcontext():
        wanted = size if enough is None else enough(size)
        wanted = (wanted[1], wanted[0]) if orientation in _SIDES_SWAPPED else wanted
        if enough is not None and image.format == "JPEG":
            image.draft(None, (wanted[1], wanted[0]))
        image.load()
        if image.mode in _WIDE_GREY:
            image = _stretch(image)
        elif "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
            rgba = shrink(image if image.mode == "RGBA" else image.convert("RGBA"), wanted)
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
        elif image.mode in ("1", "P"):  # whose values have no mean
            image = image.convert("RGB")
        image = shrink(image, wanted)
        image = image if image.mode == "RGB" else image.convert("RGB")
        # Last, when the image is smallest; what was made of it has forgotten how it lies.
        image.getexif()[_ORIENTATION] = orientation
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image), size


def _stretch(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    # A few rows at a time: in float64 a large image is several times as large.
    blocks = np.array_split(grey, -(-grey.size // 2**22) or 1)
    if not all(np.isfinite(block).all() for block in blocks):
        raise ImageError("The image holds NaN or infinite values.")
    low, high = float(grey.min()), float(grey.max())
    scaled = np.full(grey.shape, 127, np.uint8)
    if high > low:
        rows = np.array_split(scaled, len(blocks))
        for block, row in zip(blocks, rows, strict=True):
            row[:] = np.rint((block.astype(np.float64) - low) * (255 / (high - low)))
    return Image.fromarray(scaled)
