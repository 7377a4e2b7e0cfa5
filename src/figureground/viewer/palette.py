"""Colours of classes, the same in files and on pages."""

from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from figureground.storage.atomic import writing


def palette() -> UInt8[np.ndarray, "256 3"]:
    """PASCAL VOC's: the bits of a number dealt out to red, green and blue in turn, the lowest first.

    Example:
        >>> palette()[[0, 1, 15, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> channel) & 1) << (7 - bit)).astype(np.uint8)
        numbers >>= 3
    return colours


def write_class_map(path: Path, numbers: Integer[np.ndarray, "H W"]) -> None:
    """Write a class map as a PNG with VOC's palette, atomically; folders are made.

    Args:
        path: Where to.
        numbers: 0 to 255.
    """
    image = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    image.putpalette(palette().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        image.save(file, "PNG")
