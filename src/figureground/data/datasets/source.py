"""What the builders share: the record of one image, the stream of records, and careful reading of small files."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image, UnidentifiedImageError

from figureground.errors import FiguregroundError, ImageError
from figureground.ops.rle import RLE, encode

T = TypeVar("T")
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthObject:
    """One annotated object, without its category's meaning.

    Attributes:
        bbox: xywh, px, inside the image.
        area: Pixels: the file's own, else of the mask, else of the box.
        mask: Run-length encoded; ``None`` in a set without masks.
        crowd: A region of several objects, or one that the benchmark ignores.
        difficult: PASCAL VOC's flag.
        truncated: PASCAL VOC's flag: the box is less than the object.
        stuff: The mask is the foreground of the image, not one instance.
        name: Original class.
        orig_category_id: Original id of the class.
    """

    bbox: Box
    area: float
    mask: RLE | None = None
    crowd: bool = False
    difficult: bool = False
    truncated: bool = False
    stuff: bool = False
    name: str | None = None
    orig_category_id: int | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthImage:
    """One image and everything annotated in it.

    Attributes:
        file_name: As ``figureground label`` names it when given the set's folders of images.
        height: Pixels.
        width: Pixels.
        objects: In the order of the original.
        broken: What was left out: a sentence each, naming file and field.
        id: The original's, where it has numbers: published lists of results refer to it.
        extra: Further keys for the image's entry.
    """

    file_name: str
    height: int
    width: int
    objects: tuple[TruthObject, ...] = ()
    broken: tuple[str, ...] = ()
    id: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """The original annotations of a data set, read image by image.

    Attributes:
        names: What to call each image in a message; its file name wherever there is one.
        read: From an index into ``names`` to the record; an image that cannot be used is an :class:`ImageError`.
        broken: What was left out already and belongs to no image.
    """

    names: Sequence[str]
    read: Callable[[int], TruthImage]
    broken: tuple[str, ...] = ()

    def records(self, limit: int | None = None) -> Iterator[tuple[str, TruthImage | ImageError]]:
        """The name and the record of each image in order, or why it cannot be used."""
        for index, name in enumerate(self.names[:limit]):
            try:
                yield name, self.read(index)
            except ImageError as error:
                yield name, error


def gather(
    parts: Iterable[tuple[str, T]], read: Callable[[T], TruthObject]
) -> tuple[tuple[TruthObject, ...], tuple[str, ...]]:
    """Read the objects of an image and set those aside that are broken.

    Args:
        parts: Where each stands (file and line or entry), and what stands there.
        read: Raises ``ValueError`` for one that is wrong.
    """
    objects, broken = [], []
    for where, part in parts:
        try:
            objects.append(read(part))
        except ValueError as error:
            broken.append(f"{where}: {error}")
    return tuple(objects), tuple(broken)


def clip_box(corners: Iterable[float], size: tuple[int, int]) -> Box:
    """A box inside its image.

    Args:
        corners: x1, y1, x2, y2, px, half-open.
        size: ``(height, width)`` of the image; what reaches out of it is cut off.

    Returns:
        xywh, to a thousandth of a pixel.

    Raises:
        ValueError: If a number is not finite, the box is empty or reversed, or none of it is inside.

    Example:
        >>> clip_box((-2, 1, 4, 3), (10, 20))
        (0, 1, 4, 2)
    """
    x1, y1, x2, y2 = corners
    if not all(math.isfinite(value) for value in (x1, y1, x2, y2)):
        raise ValueError(f"the box {x1}, {y1}, {x2}, {y2} is not finite")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"the box from {x1:g}, {y1:g} to {x2:g}, {y2:g} is empty")
    height, width = size
    left, right = (min(max(value, 0), width) for value in (x1, x2))
    top, bottom = (min(max(value, 0), height) for value in (y1, y2))
    if right <= left or bottom <= top:
        raise ValueError(f"the box from {x1:g}, {y1:g} to {x2:g}, {y2:g} is outside its image of {width}x{height} px")
    return tidy(left), tidy(top), tidy(right - left), tidy(bottom - top)


def tidy(value: float) -> float:
    """A thousandth of a pixel is enough; whole numbers are written as such."""
    return int(value) if value == int(value) else round(value, 3)


def number(text: str | None, what: str) -> float:
    """Read a number; ``ValueError`` names ``what`` if it is none."""
    try:
        value = float(text or "")
    except ValueError:
        raise ValueError(f"`{what}` is not a number: {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"`{what}` is not finite: {text!r}")
    return value


def foreground(mask: Bool[np.ndarray, "H W"]) -> tuple[TruthObject, ...]:
    """The one object of a set that annotates foreground; none if nothing is foreground."""
    if not mask.any():
        return ()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    bbox = (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
    [rle] = encode(torch.from_numpy(mask)[None])
    return (TruthObject(bbox=bbox, area=int(mask.sum()), mask=rle, stuff=True),)


def image_size(folder: Path, name: str) -> tuple[int, int]:
    """``(height, width)`` of an image, EXIF orientation applied, from its header.

    Raises:
        ImageError: If ``name`` leads out of the folder, or the file is not there or is no image.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ImageError(f"{name}: the file name leads out of the data set.")
    with opened(folder / name) as image:
        width, height = image.size
        # Pillow decodes a whole PNG in search of EXIF data that is not in its header.
        has_exif = image.format != "PNG" or "exif" in image.info
        turned = has_exif and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def check_size(annotated: tuple[int, int], actual: tuple[int, int], where: str) -> None:
    """Refuse an annotation of another size than its image: its boxes would be in the wrong place."""
    if annotated != actual:
        raise ImageError(
            f"{where} is for an image of {annotated[1]}x{annotated[0]} px, "
            f"but the image has {actual[1]}x{actual[0]} (EXIF orientation applied)."
        )


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; whatever is wrong with it is an :class:`ImageError` that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image this program can read.") from None
    except Exception as error:  # decoders raise what they like on damaged files
        raise ImageError(f"{path} is damaged or cannot be read ({error or type(error).__name__}).") from None


def read_bytes(path: Path, error: type[FiguregroundError] = ImageError) -> bytes:
    """The content of a file, or ``error`` saying why not."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} does not exist.") from None
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.") from None


def read_lines(path: Path, error: type[FiguregroundError] = ImageError) -> list[tuple[str, str]]:
    """The lines of a small text file that are not blank, each with where it stands."""
    try:
        lines = read_bytes(path, error).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not a text file: {reason}.") from None
    return [(f"{path}, line {index}", line) for index, line in enumerate(lines, start=1) if line.strip()]
