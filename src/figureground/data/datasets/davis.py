"""DAVIS 2016: frames of videos with one foreground mask each.

Reference:
    Perazzi et al., CVPR 2016. A line of an image set names a frame and its mask, each with a leading slash:
    `/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png`. Whatever is not black is foreground.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from figureground.data.datasets.catalogue import DataSet
from figureground.data.datasets.source import (
    Source,
    TruthImage,
    check_size,
    foreground,
    image_size,
    opened,
    read_lines,
)
from figureground.errors import ImageError, UsageError


def build(data_set: DataSet, root: Path) -> Source:
    """The frames of the row's image set, in its order."""
    lines = [line for part in data_set.lists for line in read_lines(root / part, UsageError)]
    prefix, masks = f"{data_set.image_root}/", f"{data_set.annotations[0]}/"
    names = [line.split()[0].lstrip("/").removeprefix(prefix) for _, line in lines]

    def read(index: int) -> TruthImage:
        where, line = lines[index]
        frame, annotation = ([part.lstrip("/") for part in line.split()] + [""])[:2]
        if not frame.startswith(prefix) or not annotation.startswith(masks) or ".." in line:
            raise ImageError(f"{where}: not a frame in {prefix} and a mask in {masks}: {line.strip()!r}.")
        height, width = size = image_size(root / data_set.image_root, names[index])
        with opened(root / annotation) as image:
            mask = _not_black(image)
        check_size((mask.shape[0], mask.shape[1]), size, str(root / annotation))
        return TruthImage(file_name=names[index], height=height, width=width, objects=foreground(mask))

    return Source(names, read)


def _not_black(image: Image.Image) -> Bool[np.ndarray, "H W"]:
    # Of an image with a palette, the index: 0 is the background whatever its colour.
    if image.mode in ("1", "L", "P", "I", "I;16"):
        return np.asarray(image) != 0
    return (np.asarray(image.convert("RGB")) != 0).any(2)
