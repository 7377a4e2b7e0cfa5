"""Pseudo-labels for training: a COCO file of masks and the images that it is about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field

from figureground.config import Config
from figureground.data.categories import read_categories
from figureground.data.coco import ImageAnnotations
from figureground.data.images import Size, decode
from figureground.data.label_file import LabelFile, Report
from figureground.data.targets import Targets, targets_of
from figureground.errors import ImageError, RunError, UsageError
from figureground.ops.masks import resize_masks
from figureground.ops.rle import decode as decode_masks
from figureground.storage import jsonlines


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
        default=True,
        description="Every mask is an `object`; else it has the category of the file, and the detector as many as that "
        "(CutLER: yes).",
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


class PseudoLabels:
    """Images and their pseudo-labels, as examples to learn from; can be pickled.

    Args:
        path: A COCO file, as :class:`LabelFile` takes it: the ``annotations.json`` of a run, or any other.
        images: The folder that its ``file_name`` are relative to.
        config: Which masks count, and how.
        report: Called for each annotation and each image that cannot be used; it must be picklable if this shall be.
        enough: From the size of an image to one that is enough, see :func:`figureground.data.images.decode`.

    Attributes:
        file: All that is read.
        rejected: Annotations that could not be used.
        categories: Names by the id in the file; the labels of targets count them from 1, in the order of the ids.
        embeddings: Vectors to come with the targets, a ``.npy`` with a row for each annotation of the file; none.

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
        self.file = LabelFile(path, report)
        self.rejected = self.file.rejected
        self.embeddings: Path | None = None
        wanted, counts, used = [], [0], set[int]()
        for labelled in self.file:
            wanted.append(config.keep_empty or bool(self._chosen(labelled)))
            counts.append(len(labelled["annotations"]))
            used.update(entry["category_id"] for entry in labelled["annotations"])
        self._indices, self._rows = np.flatnonzero(wanted), np.cumsum(counts)
        self.categories = {1: "object"}
        if not config.class_agnostic:
            listed = read_categories(path)
            self.categories = {number: listed.get(number, str(number)) for number in sorted(used | listed.keys())}
        self._labels = {number: label for label, number in enumerate(self.categories, start=1)}
        if not len(self._indices):
            raise UsageError(
                f"{path}: none of its {len(self.file)} images has a mask to learn from "
                f"({self.file.annotations} masks, {self.rejected} that cannot be used).",
                f"Masks with a score from {config.min_score:g} count.",
            )

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        """The ``file_name`` of the image at a place."""
        return self.file[int(self._indices[index])]["file_name"]

    def example(self, index: int) -> tuple[UInt8[np.ndarray, "H W 3"], Targets]:
        """The image at a place and its instances, surest first; if it cannot be used, the next one that can.

        Raises:
            RunError: If no image can be used.
        """
        for offset in range(len(self)):
            place = int(self._indices[(index + offset) % len(self)])
            labelled = self.file[place]
            try:
                return self._load(labelled, int(self._rows[place]))
            except ImageError as error:
                self._report(labelled["file_name"], error.message)
        raise RunError(
            f"None of the {len(self)} images of {self.file.path} can be used in {self.images}.",
            "Check that this is the folder its file names are relative to.",
        )

    def _load(self, labelled: ImageAnnotations, first_row: int) -> tuple[UInt8[np.ndarray, "H W 3"], Targets]:
        pixels, size = decode(self.images / labelled["file_name"], self._enough)
        if size != (labelled["height"], labelled["width"]):
            raise ImageError(
                f"The image has {size[0]}x{size[1]} px, but its masks have "
                f"{labelled['height']}x{labelled['width']} (height x width)."
            )
        places = self._chosen(labelled)
        chosen = [labelled["annotations"][place] for place in places]
        masks = decode_masks([entry["segmentation"] for entry in chosen])
        if not chosen:
            masks = masks.reshape(0, *size)
        weights = [_score(entry) if self.config.soft_targets else 1.0 for entry in chosen]
        labels = [1 if self.config.class_agnostic else self._labels[entry["category_id"]] for entry in chosen]
        embeddings = None
        if self.embeddings is not None:
            # Mapped, so that of all vectors only these are in memory.
            rows = np.load(self.embeddings, mmap_mode="r")[[first_row + place for place in places]]
            embeddings = torch.from_numpy(rows.astype(np.float32))
        return pixels, targets_of(
            resize_masks(masks, pixels.shape[:2]),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(weights, dtype=torch.float32),
            embeddings,
        )

    def _chosen(self, labelled: ImageAnnotations) -> list[int]:
        """Places of the annotations that count, surest first."""
        scores = [_score(entry) for entry in labelled["annotations"]]
        sure = [place for place, score in enumerate(scores) if score >= self.config.min_score]
        return sorted(sure, key=lambda place: scores[place], reverse=True)[: self.config.max_objects]


def _score(entry: dict[str, Any]) -> float:
    return 1.0 if entry["score"] is None else entry["score"]
