"""Images in folders and in tars alike: plain WebDataset tars are listed once, and each member is read where it lies.

A tar needs no unpacking and no index beside it. Members are read in the order of the archive by whoever goes through
the list from its beginning, and in any order by those that do not.
"""

import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8

from figureground.data.images import Size, decode
from figureground.data.listing import EXTENSIONS, list_images
from figureground.errors import ImageError, UsageError

_TAR = ".tar"
_ARCHIVES = frozenset((".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip", ".7z", ".rar"))


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that is a file, or a member of a tar.

    Attributes:
        name: Path below the root of the list; of a member, that of the tar and then its own.
        path: The file, or the tar.
        offset_bytes: Where a member begins; ``None`` for a file.
        size_bytes: Of a member.
    """

    name: str
    path: Path
    offset_bytes: int | None = None
    size_bytes: int = 0

    def decode(self, enough: Callable[[Size], Size] | None = None) -> tuple[UInt8[np.ndarray, "H W 3"], Size]:
        """The pixels and the whole size, as :func:`figureground.data.images.decode`.

        Raises:
            ImageError: If it cannot be decoded.
        """
        if self.offset_bytes is None:
            return decode(self.path, enough)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset_bytes)
                content = file.read(self.size_bytes)
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read ({error.strerror or error}).") from None
        return decode(content, enough)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Images under one root, in a fixed order: files sorted, members of a tar as they lie in it.

    Attributes:
        root: The deepest folder that holds them all.
        files: With unique names.
        ignored: How many other files and members there were.
    """

    root: Path
    files: tuple[ImageFile, ...]
    ignored: int


def list_image_files(inputs: Sequence[str | os.PathLike[str]], exclude: Path | None = None) -> ImageFiles:
    """List the images among files, folders and tars; tars in folders count as well.

    Args:
        inputs: Files, folders and tars.
        exclude: A folder to leave out: the run's own.

    Raises:
        UsageError: If there is no image, or a tar is damaged or compressed; see :func:`list_images` for the rest.
    """
    listed = list_images(inputs, exclude, EXTENSIONS | {_TAR})
    files: list[ImageFile] = []
    ignored = listed.ignored
    for name in listed.names:
        path = listed.path(name)
        suffix = path.suffix.lower()
        if suffix in _ARCHIVES:
            raise UsageError(
                f"{path} is a compressed archive, out of which no image can be read on its own.",
                "Unpack it into a folder, or into a plain .tar, and give that.",
            )
        if suffix == _TAR and not path.is_dir():
            members, others = list_members(path, name)
            files += members
            ignored += others
        else:
            files.append(ImageFile(name, path))
    if not files:
        tars = ", ".join(listed.names)
        raise UsageError(
            f"No images were found in {tars} ({ignored} other files).",
            f"Images are recognised by their extension: {' '.join(sorted(EXTENSIONS))}.",
        )
    return ImageFiles(listed.root, tuple(files), ignored)


def list_members(path: Path, prefix: str) -> tuple[list[ImageFile], int]:
    """The images of a tar, named below ``prefix``, and how many other files it holds.

    Hidden members and links are other files; of members of one name the last counts, as in unpacking.

    Raises:
        UsageError: If it is no tar, compressed, or cut short.
    """
    found: dict[str, ImageFile] = {}
    ignored = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                hidden = any(part.startswith(".") and part != "." for part in name.parts)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or hidden or name.suffix.lower() not in EXTENSIONS:
                    ignored += 1
                    continue
                inside = f"{prefix}/{name}"
                # A name that comes again is a newer version of the same file.
                ignored += inside in found
                found[inside] = ImageFile(inside, path, member.offset_data, member.size)
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(
            f"{path} cannot be read as a tar ({str(error) or type(error).__name__}).",
            "Get it again, unpack it if it is compressed, or leave it out.",
        ) from None
    return list(found.values()), ignored


def _check_end(path: Path, end: int) -> None:
    """Refuse an archive that stops in the middle: tarfile takes a damaged header for the end."""
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"it is damaged or cut short at byte {end}")
