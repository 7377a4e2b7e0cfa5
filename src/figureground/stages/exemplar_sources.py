"""Where exemplars come from: objects that are discovered now, or those that a run has found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from figureground.data.coco import annotate
from figureground.data.images import decode
from figureground.data.label_file import LabelFile
from figureground.data.listing import ImageList
from figureground.errors import ImageError, UsageError
from figureground.ops.rle import RLE
from figureground.stages.detecting import digest_of
from figureground.stages.labeller import Labeller, LabellerConfig
from figureground.stages.labels import find_labels


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The objects of an image.

    Attributes:
        masks: Of the size of the image, the surest first.
        scores: Of each.
        pixels: The image; ``None`` where it has no object.
    """

    masks: list[RLE]
    scores: list[float]
    pixels: UInt8[np.ndarray, "H W 3"] | None


class Discovered:
    """Objects of images that are discovered when they are asked for.

    Args:
        config: How.

    Attributes:
        backbone: What the labeller looks with.
        seconds: Spent in each part.
    """

    def __init__(self, config: LabellerConfig) -> None:
        self._labeller = Labeller(config)
        self.backbone = self._labeller.backbone
        self.seconds = self._labeller.seconds

    def find(self, path: Path, name: str) -> Found:
        """The objects of an image.

        Raises:
            ImageError: If it cannot be used.
        """
        with self._labeller.timed("decode"):
            # Whole: what is cut out of it is to be as sharp as it is.
            pixels, size = decode(path)
        try:
            instances = self._labeller(pixels, size)
        except ValueError as error:
            raise ImageError(f"No features could be made of the image: {error}") from error
        found = annotate(name, size, instances)["annotations"]
        return Found([entry["segmentation"] for entry in found], [entry["score"] for entry in found], pixels)


class Given:
    """Objects that a run has found.

    Args:
        run: Its folder, or a COCO file with masks.
        images: Where its images are; none: as the run says.

    Attributes:
        images: Those of the file, in its order.
        digest: SHA-256 of the file.
    """

    def __init__(self, run: Path, images: Sequence[str]) -> None:
        file, root = find_labels(run, images)
        labels, self.digest = LabelFile(file), digest_of(file)
        self._labels = {labelled["file_name"]: index for index, labelled in enumerate(labels)}
        if len(self._labels) < len(labels):
            raise UsageError(f"{file} lists an image twice.", "Give each image one entry.")
        if not labels.annotations:
            raise UsageError(f"{file} has no mask to choose from.", "Name the run of a `label` or `predict`.")
        self._file = labels
        self.images = ImageList(root, tuple(self._labels), 0)

    def find(self, path: Path, name: str) -> Found:
        """The objects of an image.

        Raises:
            ImageError: If it cannot be used, or is not what its masks were made for.
        """
        labelled = self._file[self._labels[name]]
        scores = [1.0 if entry["score"] is None else entry["score"] for entry in labelled["annotations"]]
        if not scores:
            return Found([], [], None)
        pixels, size = decode(path)
        if size != (labelled["height"], labelled["width"]):
            raise ImageError(
                f"The image has {size[0]}x{size[1]} px, but its masks have "
                f"{labelled['height']}x{labelled['width']} (height x width)."
            )
        surest = sorted(range(len(scores)), key=lambda index: -scores[index])
        masks = [labelled["annotations"][index]["segmentation"] for index in surest]
        return Found(masks, [scores[index] for index in surest], pixels)
