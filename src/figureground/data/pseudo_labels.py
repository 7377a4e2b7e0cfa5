"""Pseudo-labels for training: a COCO file of masks and the images that it is about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field

from figureground.config import Config
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
