"""A COCO file of masks to learn from or to group, checked once and held in little memory."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from figureground.data.coco import ImageAnnotations
from figureground.data.coco_fields import (
    AnnotatedImage,
    read_entries,
    read_field,
    read_flag,
    read_images,
    read_json,
    to_number,
    to_whole,
)
from figureground.data.truth import read_mask
from figureground.errors import UsageError

Report = Callable[[str, str], None]
"""Takes the path of what cannot be used, and what is wrong with it."""


class LabelFile:
    """The images of a COCO file and their masks, checked once and packed into one block of memory.

    One block, and not a million small objects: it costs little, is pickled at once, and stays shared between forked
    processes. Regions of several objects (``iscrowd``) are no objects and left out.

    Args:
        path: A COCO file; each annotation has an ``image_id`` and a ``segmentation`` (polygons, runs, or compressed
            runs) and may have ``score`` and ``category_id``. Boxes and areas are not looked at.
        report: Called for each annotation that cannot be used, which is then left out; ``None``: it is an error.

    Attributes:
        path: The file.
        annotations: How many there are in all.
        rejected: How many could not be used.

    Raises:
        UsageError: If the file cannot be read, an image's entry is wrong, or no annotation can be used; or, without
            ``report``, one cannot.
    """

    def __init__(self, path: Path, report: Report | None = None) -> None:
        self.path = path
        self.annotations = self.rejected = 0
        content = read_json(path)
        if not isinstance(content, dict):
            raise UsageError(f"{path} holds no pseudo-labels: it has no `images`.", "A COCO file is needed.")
        images = read_images(content, path)
        entries = read_entries(content, "annotations", path)
        packed = self._pack(images, self._read(images, entries, report))
        self._ends = np.cumsum([0, *map(len, packed)])
        self._packed = b"".join(packed)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> ImageAnnotations:
        """An image; its annotations have ``segmentation``, ``score`` (``None``: none) and ``category_id``."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} images, there is no image {index}.")
        name, height, width, annotations = json.loads(self._packed[self._ends[index] : self._ends[index + 1]])
        return {
            "file_name": name,
            "height": height,
            "width": width,
            "annotations": [
                {
                    "segmentation": {"size": [height, width], "counts": counts},
                    "score": score,
                    "category_id": category,
                }
                for counts, score, category in annotations
            ],
        }

    def __iter__(self) -> Iterator[ImageAnnotations]:
        return (self[index] for index in range(len(self)))

    def _read(
        self, images: dict[int, AnnotatedImage], entries: list[Any], report: Report | None
    ) -> dict[int, list[tuple[str, float | None, int]]]:
        found: dict[int, list[tuple[str, float | None, int]]] = {number: [] for number in images}
        first_error: UsageError | None = None
        for index, entry in enumerate(entries):
            where = f"{self.path}: annotations[{index}]"
            image = None
            try:
                image = _image_of(entry, images, where)
                if read_flag(entry, "iscrowd", where):
                    continue
                found[image.id].append(_read_annotation(entry, image, where))
                self.annotations += 1
            except UsageError as error:
                if report is None:
                    raise
                self.rejected += 1
                first_error = first_error or error
                report(image.file_name if image else str(self.path), error.message)
        if first_error is not None and not self.annotations:
            raise UsageError(
                f"None of the {len(entries)} annotations can be used. The first: {first_error.message}",
                first_error.remedy,
            )
        return found

    @staticmethod
    def _pack(images: dict[int, AnnotatedImage], found: dict[int, list[tuple[str, float | None, int]]]) -> list[bytes]:
        return [
            json.dumps([image.file_name, image.height, image.width, found[image.id]], separators=(",", ":")).encode()
            for image in images.values()
        ]


def _image_of(entry: Any, images: dict[int, AnnotatedImage], where: str) -> AnnotatedImage:
    number = to_whole(read_field(entry, "image_id", where), "image_id", where)
    if number not in images:
        raise UsageError(f"{where}: `image_id` {number} is not among the {len(images)} images.")
    return images[number]


def _read_annotation(entry: dict[str, Any], image: AnnotatedImage, where: str) -> tuple[str, float | None, int]:
    """Counts of the mask, score and category."""
    mask: Any = read_mask(entry.get("segmentation"), image, f"{where}: `segmentation`")
    if mask is None:
        raise UsageError(f"{where}: `segmentation` is missing.")
    if not coco_mask.area(mask):
        raise UsageError(f"{where}: `segmentation` has no pixel.")
    score = None if entry.get("score") is None else to_number(entry["score"], "score", where)
    if score is not None and not 0 <= score <= 1:
        raise UsageError(f"{where}: `score` is {score:g}, not in [0, 1].", "Divide the scores by the largest one.")
    category = to_whole(entry.get("category_id", 1), "category_id", where)
    if category < 1:
        raise UsageError(f"{where}: `category_id` is {category}; they count from 1.")
    return mask["counts"], score, category
