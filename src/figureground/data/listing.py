"""Find the images that a command was given."""

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
    files: set[str] = set()
    folders: list[str] = []
    ignored = 0
    skip = os.path.realpath(exclude) if exclude is not None else None
    for entry in inputs:
        path = os.path.abspath(os.path.expanduser(entry))
        if os.path.isdir(path):
            folders.append(path)
            for found in _walk(path, skip, ()):
                if _is_image_name(found, extensions):
                    files.add(found)
                else:
                    ignored += 1
        elif os.path.lexists(path):
            files.add(path)
        else:
            raise UsageError(f"There is no file or folder {os.fspath(entry)!r}.", "Check the path.")
    if not files:
        where = ", ".join(repr(os.fspath(entry)) for entry in inputs)
        raise UsageError(
            f"No images were found in {where} ({ignored} other files).",
            f"Images are recognised by their extension: {' '.join(sorted(extensions))}.",
        )
    root = os.path.commonpath([*folders, *(os.path.dirname(file) for file in files if not _inside(file, folders))])
    names = sorted(os.path.relpath(file, root).replace(os.sep, "/") for file in files)
    return ImageList(Path(root), tuple(names), ignored)


def _walk(folder: str, skip: str | None, parents: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real == skip or real in parents:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        # An unreadable folder becomes one named failure further on: it cannot be decoded as an image either.
        yield folder
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(entry.path, skip, (*parents, real))
        else:
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself: named as a file, and explained when it cannot be read.
        return False


def _is_image_name(path: str, extensions: Collection[str]) -> bool:
    return os.path.splitext(path)[1].lower() in extensions or os.path.isdir(path)


def _inside(file: str, folders: Sequence[str]) -> bool:
    return any(file.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)
