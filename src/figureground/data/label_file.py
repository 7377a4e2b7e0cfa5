"""A file of masks to learn from or to group, checked once and held in little memory."""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from figureground.data.annotation_file import AnnotationFile, open_annotations
from figureground.data.coco import ImageAnnotations
from figureground.data.coco_fields import AnnotatedImage, read_field, read_flag, read_images, to_number, to_whole
from figureground.data.truth import read_mask
from figureground.errors import UsageError
from figureground.storage.packed import Packed

Report = Callable[[str, str], None]
"""Takes the path of what cannot be used, and what is wrong with it."""


class LabelFile:
    """The images of a COCO or Parquet file and their masks, checked once and packed (:class:`Packed`).

    The file is read entry by entry. Regions of several objects (``iscrowd``) are no objects and left out.

    Args:
        path: A COCO file, or what :func:`figureground.data.parquet.write_parquet` wrote; each annotation has an
            ``image_id`` and a ``segmentation`` (polygons, runs, or compressed runs) and may have ``score`` and
            ``category_id``. Boxes and areas are not looked at.
        report: Called for each annotation that cannot be used, which is then left out; ``None``: it is an error.

    Attributes:
        path: The file.
        annotations: How many there are in all.
        rejected: How many could not be used.

    Raises:
        UsageError: If the file cannot be read, an image's entry is wrong, or no annotation can be used; or, without
            ``report``, one cannot.
        RunError: If the folder for temporary files is full.
    """

    def __init__(self, path: Path, report: Report | None = None) -> None:
        self.path = path
        self.annotations = self.rejected = 0
        file = open_annotations(path)
        if not file.is_coco:
            raise UsageError(f"{path} holds no pseudo-labels: it has no `images`.", "A COCO file is needed.")
        places: dict[int, int] = {}
        self._images = Packed(_read_images(file, path, places))
        owners = array("q")
        self._found = Packed(self._read(file, places, owners, report))
        # Of each image its annotations in the order of the file, wherever in it they stand.
        order = np.argsort(owners, kind="stable")
        self._starts = np.searchsorted(np.asarray(owners)[order], np.arange(len(self._images) + 1))
        self._order = order.astype(np.uint32)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> ImageAnnotations:
        """An image; its annotations have ``segmentation``, ``score`` (``None``: none) and ``category_id``."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} images, there is no image {index}.")
        name, height, width = self._images[index]
        places = self._order[self._starts[index] : self._starts[index + 1]].tolist()
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
                for counts, score, category in map(self._found.__getitem__, places)
            ],
        }

    def __iter__(self) -> Iterator[ImageAnnotations]:
        return (self[index] for index in range(len(self)))

    def _read(
        self, file: AnnotationFile, places: dict[int, int], owners: "array[int]", report: Report | None
    ) -> Iterator[tuple[str, float | None, int]]:
        """What is kept of each annotation that can be used; ``owners`` get the place of its image."""
        first_error: UsageError | None = None
        index = -1
        for index, entry in enumerate(file.entries("annotations")):
            where = f"{self.path}: annotations[{index}]"
            image = None
            try:
                image = self._image_of(entry, places, where)
                if read_flag(entry, "iscrowd", where):
                    continue
                found = _read_annotation(entry, image, where)
            except UsageError as error:
                if report is None:
                    raise
                self.rejected += 1
                first_error = first_error or error
                report(image.file_name if image else str(self.path), error.message)
                continue
            self.annotations += 1
            owners.append(places[image.id])
            yield found
        if first_error is not None and not self.annotations:
            raise UsageError(
                f"None of the {index + 1} annotations can be used. The first: {first_error.message}",
                first_error.remedy,
            )

    def _image_of(self, entry: Any, places: dict[int, int], where: str) -> AnnotatedImage:
        number = to_whole(read_field(entry, "image_id", where), "image_id", where)
        if number not in places:
            raise UsageError(f"{where}: `image_id` {number} is not among the {len(places)} images.")
        return AnnotatedImage(number, *self._images[places[number]])


def _read_images(file: AnnotationFile, path: Path, places: dict[int, int]) -> Iterator[tuple[str, int, int]]:
    """What is kept of each image; ``places`` get where it stands, by its id."""
    for place, image in enumerate(read_images(file.entries("images", stop=True), path)):
        places[image.id] = place
        yield image.file_name, image.height, image.width


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
