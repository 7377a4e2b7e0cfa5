"""Pseudo-labels for training: a COCO file of masks and the images that it is about."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from pycocotools import mask as coco_mask
from pydantic import Field

from figureground.config import Config
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
from figureground.data.images import Size, decode
from figureground.data.targets import Targets, targets_of
from figureground.data.truth import read_mask
from figureground.errors import ImageError, RunError, UsageError
from figureground.ops.masks import resize_masks
from figureground.ops.rle import decode as decode_masks
from figureground.storage import jsonlines

Report = Callable[[str, str], None]
"""Takes the path of what cannot be used, and what is wrong with it."""


class PseudoLabelConfig(Config):
    """Which pseudo-labels are learned from, and how they count."""

    min_score: float = Field(
        default=0.0, ge=0, le=1, description="Masks below are left out; one without a score has 1 (CutLER: all count)."
    )
    max_objects: int | None = Field(
        default=None, ge=1, description="At most so many of an image, the surest ones (CutLER: all)."
    )
    keep_empty: bool = Field(
        default=False, description="Learn from images without a mask, too, as pure background (CutLER: no)."
    )
    soft_targets: bool = Field(
        default=False, description="The score is the weight in the losses, else 1 (CutLER: no; CuVLER: yes)."
    )
    class_agnostic: bool = Field(
        default=True, description="Every mask is an `object`; else it has the category of the file (CutLER: yes)."
    )


class Failures:
    """What could not be used, one line each in ``failures.jsonl``.

    Copies in other processes write to the same file; what several of them meet is read back once.

    Args:
        path: The file; made if it does not exist, else gone on with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = {(entry["path"], entry["error"]) for entry in self.entries()}
        if not path.exists():
            jsonlines.write(path, ())

    def __call__(self, path: str, error: str) -> None:
        """Add a line, unless it is there."""
        if (path, error) not in self._known:
            self._known.add((path, error))
            jsonlines.append(self.path, {"path": path, "error": error})

    def entries(self) -> list[dict[str, Any]]:
        """``path`` and ``error`` of each, once, in the order they were met."""
        return list({(entry["path"], entry["error"]): entry for entry in jsonlines.read(self.path)}.values())


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


class PseudoLabels:
    """Images and their pseudo-labels, as examples to learn from; can be pickled.

    Args:
        path: A COCO file, as :class:`LabelFile` takes it: the ``annotations.json`` of a run, or any other.
        images: The folder that its ``file_name`` are relative to.
        config: Which masks count, and how.
        report: Called for each annotation and each image that cannot be used; it must be picklable if this shall be.
        enough: From the size of an image to one that is enough, see :func:`figureground.data.images.decode`.

    Attributes:
        rejected: Annotations that could not be used.

    Raises:
        UsageError: If the file is broken (see :class:`LabelFile`) or nothing is left to learn from.
    """

    def __init__(
        self,
        path: Path,
        images: Path,
        config: PseudoLabelConfig,
        report: Report,
        enough: Callable[[Size], Size] | None = None,
    ) -> None:
        self.images, self.config, self._report, self._enough = images, config, report, enough
        self._file = LabelFile(path, report)
        self.rejected = self._file.rejected
        wanted = [config.keep_empty or bool(self._chosen(labelled)) for labelled in self._file]
        self._indices = np.flatnonzero(wanted)
        if not len(self._indices):
            raise UsageError(
                f"{path}: none of its {len(self._file)} images has a mask to learn from "
                f"({self._file.annotations} masks, {self.rejected} that cannot be used).",
                f"Masks with a score from {config.min_score:g} count.",
            )

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        """The ``file_name`` of the image at a place."""
        return self._file[int(self._indices[index])]["file_name"]

    @property
    def max_category(self) -> int:
        """The largest category of the file's annotations."""
        return max(entry["category_id"] for labelled in self._file for entry in labelled["annotations"])

    def example(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], Targets]:
        """The image at a place and its instances, surest first; if it cannot be used, the next one that can.

        Raises:
            RunError: If no image can be used.
        """
        for offset in range(len(self)):
            labelled = self._file[int(self._indices[(index + offset) % len(self)])]
            try:
                return self._load(labelled)
            except ImageError as error:
                self._report(labelled["file_name"], error.message)
        raise RunError(
            f"None of the {len(self)} images of {self._file.path} can be used in {self.images}.",
            "Check that this is the folder its file names are relative to.",
        )

    def _load(self, labelled: ImageAnnotations) -> tuple[UInt8[np.ndarray, "H W 3"], Targets]:
        pixels, size = decode(self.images / labelled["file_name"], self._enough)
        if size != (labelled["height"], labelled["width"]):
            raise ImageError(
                f"The image has {size[0]}x{size[1]} px, but its masks have "
                f"{labelled['height']}x{labelled['width']} (height x width)."
            )
        chosen = self._chosen(labelled)
        masks = decode_masks([entry["segmentation"] for entry in chosen])
        if not chosen:
            masks = masks.reshape(0, *size)
        weights = [_score(entry) if self.config.soft_targets else 1.0 for entry in chosen]
        labels = [1 if self.config.class_agnostic else entry["category_id"] for entry in chosen]
        return pixels, targets_of(
            resize_masks(masks, pixels.shape[:2]),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(weights, dtype=torch.float32),
        )

    def _chosen(self, labelled: ImageAnnotations) -> list[dict[str, Any]]:
        sure = [entry for entry in labelled["annotations"] if _score(entry) >= self.config.min_score]
        return sorted(sure, key=_score, reverse=True)[: self.config.max_objects]


def _score(entry: dict[str, Any]) -> float:
    return 1.0 if entry["score"] is None else entry["score"]


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
