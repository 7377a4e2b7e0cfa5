"""Fields of COCO files, each checked; an error names the file and the field."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figureground.errors import UsageError


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image as a COCO file lists it; ids of other people's files may be 0.

    Attributes:
        id: Unique in its file.
        file_name: Path relative to a folder of images.
        height: Pixels.
        width: Pixels.
    """

    id: int
    file_name: str
    height: int
    width: int


def read_json(path: Path) -> Any:
    """Parse a file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}.", "A COCO file is needed.") from None


def read_images(entries: Iterable[Any], path: Path) -> Iterator[AnnotatedImage]:
    """The images that a file lists; ``entries`` are gone through as the images are asked for.

    Raises:
        UsageError: If an entry is wrong, or an ``id`` is given twice; it names both.
    """
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        number = to_whole(read_field(entry, "id", where), "id", where)
        where = f"{path}: image {number}"
        if number in seen:
            raise UsageError(f"{where}: `id` is given twice.")
        seen.add(number)
        name = read_field(entry, "file_name", where)
        if not isinstance(name, str) or not name:
            raise UsageError(f"{where}: `file_name` is not a text: {name!r}.")
        height, width = (to_whole(read_field(entry, key, where), key, where) for key in ("height", "width"))
        if min(height, width) < 1:
            raise UsageError(f"{where}: `height` and `width` must be positive, got {height} and {width}.")
        yield AnnotatedImage(number, name, height, width)


def read_field(entry: Any, key: str, where: str) -> Any:
    """A field that must be there."""
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is not an object: {shorten(entry)}.")
    if entry.get(key) is None:
        raise UsageError(f"{where}: `{key}` is missing.")
    return entry[key]


def to_number(value: Any, key: str, where: str) -> float:
    """A finite number."""
    if not are_numbers([value]):
        raise UsageError(f"{where}: `{key}` is not a finite number: {shorten(value)}.")
    return float(value)


def to_whole(value: Any, key: str, where: str) -> int:
    """A whole number."""
    if not are_numbers([value]) or value != int(value):
        raise UsageError(f"{where}: `{key}` is not a whole number: {shorten(value)}.")
    return int(value)


def read_flag(entry: dict[str, Any], key: str, where: str) -> bool:
    """A field that is 0 or 1, and 0 where it is missing."""
    value = entry.get(key) or 0
    if value not in (0, 1):
        raise UsageError(f"{where}: `{key}` is neither 0 nor 1: {shorten(value)}.")
    return bool(value)


def are_numbers(values: list[Any]) -> bool:
    """Whether all are finite numbers."""
    # Not isinstance: true and false are no numbers. NaN is below nothing.
    return all(type(value) in (int, float) and abs(value) < 1e15 for value in values)


def shorten(value: Any) -> str:
    """A value as a message quotes it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."
