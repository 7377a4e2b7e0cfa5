"""KITTI's format: one text file an image, one object a line.

Reference:
    Geiger et al., CVPR 2012; `readme.txt` of the object development kit: type, truncated, occluded, alpha, then left,
    top, right, bottom in pixels from 0, then eight numbers of the 3D box. The kit's overlap takes right - left as the
    width, which makes the boxes half-open. `DontCare` marks regions that are not annotated: ignored as crowds are.
"""

import os
from pathlib import Path

from figureground.data.datasets.catalogue import DataSet
from figureground.data.datasets.source import (
    Source,
    TruthImage,
    TruthObject,
    clip_box,
    gather,
    image_size,
    number,
    read_lines,
    tidy,
)

_COLUMNS = 15
_CORNERS = ("left", "top", "right", "bottom")


def build(data_set: DataSet, root: Path) -> Source:
    """The images that have a file of labels."""
    labels = root / data_set.annotations[0]
    names = sorted(name.removesuffix(".txt") for name in os.listdir(labels) if name.endswith(".txt"))

    def read(index: int) -> TruthImage:
        file_name = f"{names[index]}.png"
        size = image_size(root / data_set.image_root, file_name)
        lines = read_lines(labels / f"{names[index]}.txt")
        objects, broken = gather(lines, lambda line: _read_object(line, size))
        return TruthImage(file_name=file_name, height=size[0], width=size[1], objects=objects, broken=broken)

    return Source([f"{name}.png" for name in names], read)


def _read_object(line: str, size: tuple[int, int]) -> TruthObject:
    columns = line.split()
    if len(columns) < _COLUMNS:
        raise ValueError(f"{len(columns)} of {_COLUMNS} columns (cut short?)")
    corners = [number(value, corner) for value, corner in zip(columns[4:8], _CORNERS, strict=True)]
    bbox = clip_box(corners, size)
    return TruthObject(bbox=bbox, area=tidy(bbox[2] * bbox[3]), crowd=columns[0] == "DontCare", name=columns[0])
