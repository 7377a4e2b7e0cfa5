"""Class-agnostic truth as a COCO file, written in one pass and without holding it in memory."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from figureground.data.coco import CATEGORY
from figureground.data.datasets.source import TruthImage, TruthObject
from figureground.storage.atomic import writing

_FLAGS = ("difficult", "truncated", "stuff")


def write_truth(path: Path, images: Iterable[TruthImage], info: Mapping[str, Any]) -> None:
    """Write images and their objects atomically.

    Annotations wait in a nameless temporary file beside ``path`` until the last image is written. Their ids count from
    1; an image without an id of its own gets its position from 1.

    Args:
        path: Where to.
        images: All with unique ids, or all without.
        info: For the file's ``info``.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    with writing(path) as file, tempfile.TemporaryFile(dir=path.parent) as annotations:
        file.write(b'{"info":' + _json(info) + b',\n"categories":[' + _json(CATEGORY) + b'],\n"images":[')
        count = 0
        for position, image in enumerate(images, start=1):
            image_id = position if image.id is None else image.id
            size = {"height": image.height, "width": image.width}
            _line(file, position, {"id": image_id, "file_name": image.file_name, **size, **image.extra})
            for entry in image.objects:
                count += 1
                _line(annotations, count, {"id": count, "image_id": image_id, "category_id": 1, **to_coco(entry)})
        file.write(b'],\n"annotations":[')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write(b"]}\n")


def to_coco(entry: TruthObject) -> dict[str, Any]:
    """An object as COCO files hold it; flags that are not set, and what is not known, are left out."""
    annotation: dict[str, Any] = {"bbox": list(entry.bbox), "area": entry.area, "iscrowd": int(entry.crowd)}
    if entry.mask is not None:
        annotation["segmentation"] = entry.mask
    annotation |= {flag: 1 for flag in _FLAGS if getattr(entry, flag)}
    origin = {"name": entry.name, "orig_category_id": entry.orig_category_id}
    return annotation | {key: value for key, value in origin.items() if value is not None}


def _json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def _line(file: IO[bytes], position: int, content: dict[str, Any]) -> None:
    file.write((b",\n" if position > 1 else b"\n") + _json(content))
