"""Find the images that a command was given."""

import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from figureground.errors import UsageError

EXTENSIONS = frozenset(
    (
        *(".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx"),
        *(".pgm", ".png", ".pnm", ".ppm", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
    )
)


@dataclass(frozen=True, slots=True)
class ImageList:
    """Images under one root, in a fixed order.

    Attributes:
        root: The deepest folder that holds them all.
        names: Paths relative to ``root`` with forward slashes, sorted; unique.
        ignored: How many other files the folders held.
    """

    root: Path
    names: tuple[str, ...]
    ignored: int

    def path(self, name: str) -> Path:
        """Where to read an image."""
        return self.root / name


def list_images(
    inputs: Sequence[str | os.PathLike[str]], exclude: Path | None = None, extensions: Collection[str] = EXTENSIONS
) -> ImageList:
    """List the images among files and folders, folders recursively, each file once.

    In a folder, files with an image's extension count (hidden ones do not); a file given by name always counts. Links
    to folders are followed, but never into a folder that is being walked already.

    Args:
        inputs: Files and folders.
        exclude: A folder to leave out: the run's own.
        extensions: What counts in a folder; lower case, with the dot.

    Raises:
        UsageError: If nothing was given, an input does not exist, or no image is found.
    """
    if not inputs:
        raise UsageError("No images were given.", "Name files or folders: figureground label photos/ --out runs/photos")
    paths = [os.path.abspath(os.path.expanduser(entry)) for entry in inputs]
    for path, entry in zip(paths, inputs, strict=True):
        if not os.path.lexists(path):
            raise UsageError(f"There is no file or folder {os.fspath(entry)!r}.", "Check the path.")
    folders = {path for path in paths if os.path.isdir(path)}
    root = os.path.commonpath([path if path in folders else os.path.dirname(path) for path in paths])
    skip = os.path.realpath(exclude) if exclude is not None else None
    # One text an image and nothing else: of a million, all that this holds is the names.
    start = len(root.rstrip(os.sep)) + 1
    names: list[str] = []
    ignored = 0
    for path in paths:
        if path not in folders:
            names.append(_relative(path, start))
            continue
        for found in _walk(path, skip, ()):
            if _is_image_name(found, extensions):
                names.append(_relative(found, start))
            else:
                ignored += 1
    if not names:
        where = ", ".join(repr(os.fspath(entry)) for entry in inputs)
        raise UsageError(
            f"No images were found in {where} ({ignored} other files).",
            f"Images are recognised by their extension: {' '.join(sorted(extensions))}.",
        )
    names.sort()
    return ImageList(Path(root), tuple(name for name, _ in itertools.groupby(names)), ignored)


def _relative(path: str, start: int) -> str:
    """A path from a character on, with forward slashes; the root itself is a dot."""
    return path[start:].replace(os.sep, "/") or "."


def _walk(folder: str, skip: str | None, parents: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real == skip or real in parents:
        return
    below: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    below.append(entry.path)
                else:
                    yield entry.path
    except OSError:
        # An unreadable folder becomes one named failure further on: it cannot be decoded as an image either.
        yield folder
    for path in below:
        yield from _walk(path, skip, (*parents, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself: named as a file, and explained when it cannot be read.
        return False


def _is_image_name(path: str, extensions: Collection[str]) -> bool:
    return os.path.splitext(path)[1].lower() in extensions or os.path.isdir(path)
