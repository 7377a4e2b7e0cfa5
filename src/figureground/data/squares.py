"""Photographs squashed to squares of one size: what fits into one tensor, with the shape that each had beside it.

A crop undoes the squashing: its window is cut in the photograph's own proportions (:mod:`figureground.data.crops`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from figureground.data.resize import resize_image
from figureground.data.tars import ImageFile
from figureground.errors import ImageError, RunError

Square = tuple[UInt8[np.ndarray, "S S 3"], float]


@dataclass(frozen=True, slots=True)
class Squares:
    """Photographs in memory.

    Attributes:
        pixels: Those that could be read.
        aspects: Width over height of each before it was squashed, on the CPU.
        rows: Where each photograph of the list is in these; one that could not be read has the row of the next that
            could.
    """

    pixels: UInt8[Tensor, "I S S 3"]
    aspects: Float[Tensor, "I"]
    rows: Int64[Tensor, "L"]


def read_square(file: ImageFile, side: int) -> Square:
    """Decode a photograph and squash it.

    Returns:
        The square, and width over height of the photograph.

    Raises:
        ImageError: If it cannot be decoded.
    """
    # A JPEG is decoded no larger than needed; its shorter side decides.
    pixels, (height, width) = file.decode(enough=lambda _: (side, side))
    return resize_image(np.ascontiguousarray(pixels), (side, side)), width / height


def load_squares(
    files: Sequence[ImageFile],
    side: int,
    *,
    device: str = "cpu",
    workers: int = 0,
    failed: Callable[[str, str], None] = lambda name, error: None,
) -> Squares:
    """Decode all photographs, one after another.

    Args:
        files: Which.
        side: Of a square, px.
        device: Where the pixels are put.
        workers: Processes that decode; 0: this one.
        failed: Called with name and reason of each photograph that cannot be read.

    Raises:
        RunError: If no photograph can be read.
    """
    pixels = torch.empty(len(files), side, side, 3, dtype=torch.uint8, device=device)
    aspects, readable = [], []
    # Its own generator: the loader seeds its workers, which draw nothing, from the global one otherwise.
    loader = DataLoader(
        _Reader(files, side),  # pyright: ignore[reportArgumentType]
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]
        # A fork of a process that has computed with several threads, or on a GPU, may hang.
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator(),
    )
    for index, read in enumerate(loader):
        if isinstance(read, str):
            failed(files[index].name, read)
        else:
            pixels[len(readable)] = torch.from_numpy(read[0].copy())
            aspects.append(read[1])
            readable.append(index)
    if not readable:
        raise none_readable(files)
    # The first readable one at or after each; behind the last comes the first again.
    rows = torch.searchsorted(torch.tensor(readable), torch.arange(len(files))) % len(readable)
    return Squares(pixels[: len(readable)], torch.tensor(aspects, dtype=torch.float32), rows)


def none_readable(files: Sequence[ImageFile]) -> RunError:
    """What is to be said where not one photograph can be read."""
    return RunError(
        f"None of the {len(files)} images can be read, {files[0].name} and all others.",
        "Look at a few of them with another program.",
    )


class _Reader:
    """Squares, or the reason why there is none, by index; picklable, for the workers."""

    def __init__(self, files: Sequence[ImageFile], side: int) -> None:
        self.files, self.side = files, side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Square | str:
        try:
            return read_square(self.files[index], self.side)
        except ImageError as error:
            return error.message


def _as_it_is(read: Square | str) -> Square | str:
    return read
