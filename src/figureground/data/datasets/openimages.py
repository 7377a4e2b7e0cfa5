"""OpenImages' format: one CSV file with one box a row, in shares of the image.

Reference:
    https://storage.googleapis.com/openimages/web/download.html, 'Boxes': XMin, XMax, YMin and YMax are in [0, 1];
    IsGroupOf marks a box around more than five instances that touch: a crowd region. The shares are taken of the image
    with its EXIF orientation applied.
"""

import csv
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
from figureground.errors import ImageError, UsageError

_SIDES = ("XMin", "YMin", "XMax", "YMax")
_NEEDED = ("ImageID", "LabelName", *_SIDES, "IsGroupOf")
_CLASSES = "class-descriptions-boxable.csv"
# Where the rows of an image begin: the byte and the line. Rows apart from each other make several.
Runs = list[tuple[int, int]]


def build(data_set: DataSet, root: Path) -> Source:
    """The images that have a box, sorted by id.

    The file is read twice, and only where each image's rows begin is held in memory.

    Raises:
        UsageError: If the file is cut short or a column is missing.
    """
    path = root / data_set.annotations[0]
    columns, runs = _index(path)
    classes = _read_classes(root / _CLASSES)
    ids = sorted(runs)

    def read(index: int) -> TruthImage:
        file_name = f"{ids[index]}.jpg"
        size = image_size(root / data_set.image_root, file_name)
        objects, broken = gather(
            _rows(path, ids[index], runs[ids[index]]), lambda line: _read_object(line, columns, classes, size)
        )
        return TruthImage(file_name=file_name, height=size[0], width=size[1], objects=objects, broken=broken)

    return Source([f"{name}.jpg" for name in ids], read)


def _index(path: Path) -> tuple[list[str], dict[str, Runs]]:
    """The names of the columns, and where the rows of each image begin."""
    runs: dict[str, Runs] = {}
    line, current = b"", b""
    try:
        with path.open("rb") as file:
            header = file.readline()
            columns = _cells(header)
            missing = [name for name in _NEEDED if name not in columns]
            if missing or columns[0] != "ImageID":
                problem = f"no column {', '.join(missing)}" if missing else "ImageID is not the first column"
                raise UsageError(f"{path}, line 1: {problem}.", f"The columns are {', '.join(_NEEDED)}, and others.")
            offset = len(header)
            row = 1
            for row, line in enumerate(file, start=2):
                image_id = _id(line)
                if image_id != current and line.strip():
                    runs.setdefault(image_id.decode("ascii", "replace"), []).append((offset, row))
                current = image_id
                offset += len(line)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    if line and not line.endswith(b"\n") and len(_cells(line)) < len(columns):
        raise UsageError(
            f"{path}, line {row}: the file ends in the middle of a row ({len(_cells(line))} of {len(columns)} columns; "
            "not wholly downloaded?).",
            "Get the file again.",
        )
    return columns, runs


def _rows(path: Path, image_id: str, runs: Runs) -> list[tuple[str, bytes]]:
    rows = []
    try:
        with path.open("rb") as file:
            for offset, first in runs:
                file.seek(offset)
                for row, line in enumerate(file, start=first):
                    if _id(line).decode("ascii", "replace") != image_id:
                        break
                    rows.append((f"{path}, line {row}", line))
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from None
    return rows


def _read_object(line: bytes, columns: list[str], classes: dict[str, str], size: tuple[int, int]) -> TruthObject:
    cells = _cells(line)
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} of {len(columns)} columns")
    row = dict(zip(columns, cells, strict=True))
    shares = {side: number(row[side], side) for side in _SIDES}
    for side, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"`{side}` is not in [0, 1]: {share:g}")
    if row["IsGroupOf"] not in ("0", "1", "-1"):
        raise ValueError(f"`IsGroupOf` is not 0, 1 or -1: {row['IsGroupOf']!r}")
    height, width = size
    x1, y1, x2, y2 = (shares[side] * scale for side, scale in zip(_SIDES, (width, height) * 2, strict=True))
    bbox = clip_box((x1, y1, x2, y2), size)
    label = row["LabelName"]
    return TruthObject(
        bbox=bbox,
        area=tidy(bbox[2] * bbox[3]),
        crowd=row["IsGroupOf"] == "1",
        name=classes.get(label, label),
        orig_category_id=label,
    )


def _read_classes(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    rows = [next(csv.reader([line])) for _, line in read_lines(path, UsageError)]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def _id(line: bytes) -> bytes:
    return line.partition(b",")[0].strip()


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8-sig", "replace").rstrip("\r\n")]), [""])
