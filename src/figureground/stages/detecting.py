"""A trained detector and what it finds: for `predict`, and for `train` while it trains."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from pydantic import Field, field_validator
from torch import Tensor

from figureground.config import Config
from figureground.data.augment import fitted
from figureground.data.coco import ImageAnnotations, annotate
from figureground.data.images import Size, decode
from figureground.data.resize import to_tensor
from figureground.data.truth import AnnotatedImage, Annotation, AnnotationSet, read_truth
from figureground.detectors import load
from figureground.detectors.interface import Detector, resize
from figureground.errors import ConfigError, ImageError, UsageError
from figureground.evaluation.corloc import corloc
from figureground.evaluation.instance_ap import evaluate_instances
from figureground.structures import Instances

DETECTOR_FILE = "detector.safetensors"


def detector_file(detector: str | os.PathLike[str]) -> Path:
    """The file of a detector: the one given, or that of a run's folder.

    Raises:
        UsageError: If there is no such file or folder, or the folder holds no detector.
    """
    path = Path(os.path.abspath(os.path.expanduser(detector)))
    if path.is_dir() and not (path / DETECTOR_FILE).is_file():
        raise UsageError(
            f"{path} holds no {DETECTOR_FILE}.",
            "Give the folder of a training that has ended (the same command goes on where it stopped), or a file.",
        )
    if not path.exists():
        raise UsageError(f"There is no detector at {path}.", "Give the folder of a training, or a file of weights.")
    return path / DETECTOR_FILE if path.is_dir() else path


def load_detector(detector: str | os.PathLike[str], device: str = "cpu", **changes: Any) -> Detector:
    """Load a trained detector.

    Args:
        detector: The folder of a `train` run, a ``.safetensors`` of one, or an official checkpoint of detectron2
            (``.pth``, ``.pkl``), as CutLER publishes them.
        device: Where to compute.
        changes: Fields of its configuration that are to differ, as ``max_detections=300``.

    Returns:
        The detector, ready to find: ``detector.detect([image])`` takes RGB images in [0, 1] of shape ``(3, H, W)`` and
        gives the instances of each.

    Raises:
        UsageError: If there is none.
        WeightsError: If the file cannot be read or holds something else.
    """
    return load(detector_file(detector), **changes).to(device)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, the name that its content has.

    Raises:
        UsageError: If it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from None


class Finder:
    """A detector as the stages use it: pixels in, annotations of a COCO file out.

    Args:
        detector: On its device; its mode is left as it is.
        precision: ``fp32``, or ``bf16`` for most of the arithmetic.
        score_threshold: Instances score above this; none: the detector's own.
        max_detections: Instances an image at most; none: the detector's own.
    """

    def __init__(
        self,
        detector: Detector,
        precision: str = "fp32",
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> None:
        self.detector, self.precision = detector, precision
        self.score_threshold, self.max_detections = score_threshold, max_detections

    def enough(self, size: Size) -> Size:
        """The largest size at which an image of ``size`` is looked at."""
        config = self.detector.config
        return size if config.short_side is None else fitted(size, config.short_side, config.long_side)

    @torch.inference_mode()
    def find(
        self, names: Sequence[str], pixels: Sequence[UInt8[np.ndarray, "_ _ 3"]], sizes: Sequence[Size]
    ) -> list[ImageAnnotations]:
        """Find the objects of a batch of images.

        Args:
            names: Of the images.
            pixels: RGB, of the image or a smaller version of it.
            sizes: ``(height, width)`` of the images themselves, which those of the annotations are.

        Returns:
            Annotations of each image, surest first. Boxes are predicted; they need not be the extents of the masks.
        """
        config, device = self.detector.config, next(self.detector.parameters()).device
        images = []
        for each in pixels:
            image = to_tensor(each, device)[0]
            # Masks at the size it is looked at; in a photograph many times as large a hundred would take gigabytes.
            seen = resize(image, config.short_side, config.long_side)
            images.append(seen if seen.numel() < image.numel() else image)
        with (
            _evaluating(self.detector),
            torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            found = self.detector.detect(
                images, score_threshold=self.score_threshold, max_detections=self.max_detections
            )
        ids = torch.tensor(list(self.detector.categories))
        return [
            annotate(name, size, _to_cpu(instances, ids), own_boxes=True)
            for name, size, instances in zip(names, sizes, found, strict=True)
        ]


def _to_cpu(found: Instances, ids: Int64[Tensor, "K"]) -> Instances:
    """All at once, labels as ids of a file: each number asked for on its own would wait for the device anew."""
    return Instances(found.masks.cpu(), found.boxes.cpu(), found.scores.cpu(), ids[found.labels.cpu() - 1])


@contextlib.contextmanager
def _evaluating(detector: Detector) -> Iterator[None]:
    before = detector.training
    detector.eval()
    try:
        yield
    finally:
        detector.train(before)


class TruthProbeConfig(Config):
    """What a detector is measured by while it is trained; nothing of it reaches the detector."""

    truth: str | None = Field(default=None, description="COCO file of true objects; none: nothing is measured.")
    images: str | None = Field(default=None, description="Folder of its images.")
    limit: int = Field(default=100, ge=1, description="First images of it that are looked at.")

    @field_validator("truth", "images")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return os.path.abspath(os.path.expanduser(path)) if path else None


class TruthProbe:
    """Average precision and CorLoc on images with a truth.

    Args:
        config: Truth and images.
        finder: What is measured.

    Raises:
        UsageError: If the truth or an image cannot be read, or there is no object in it.
    """

    def __init__(self, config: TruthProbeConfig, finder: Finder) -> None:
        assert config.truth is not None
        if config.images is None:
            raise ConfigError("probe.truth is given without its images.", "Add --set probe.images=FOLDER.")
        truth = read_truth(Path(config.truth))
        self.truth = truth.within(truth.images[: config.limit])
        objects = [entry for entry in self.truth.all() if not entry.crowd]
        if not objects:
            raise UsageError(f"{truth.path} has no object in its first {len(self.truth.images)} images.")
        self.kinds = ("box", "mask") if all(entry.mask for entry in self.truth.all()) else ("box",)
        self.finder = finder
        self.pixels = [self._load(image, Path(config.images)) for image in self.truth.images]

    def __call__(self) -> dict[str, float]:
        """``box_ap``, ``box_ap50``, the same of masks where the truth has them, and ``corloc``; in [0, 1]."""
        found: dict[int, tuple[Annotation, ...]] = {}
        for image, pixels in zip(self.truth.images, self.pixels, strict=True):
            [result] = self.finder.find([image.file_name], [pixels], [(image.height, image.width)])
            found[image.id] = tuple(_annotation(entry, image) for entry in result["annotations"])
        predictions = AnnotationSet(self.truth.path, self.truth.images, found)
        measured = {}
        for kind in self.kinds:
            values = evaluate_instances(self.truth, predictions, kind).values
            measured |= {f"{kind}_{name}": value for name in ("ap50", "ap") if (value := values[name]) is not None}
        return measured | {"corloc": float(corloc(self.truth, predictions).mean())}

    def _load(self, image: AnnotatedImage, folder: Path) -> np.ndarray:
        try:
            return decode(folder / image.file_name, self.finder.enough)[0]
        except ImageError as error:
            raise UsageError(
                f"{folder / image.file_name}, which {self.truth.path} names, cannot be read: {error.message}",
                "Give the folder that its file names are relative to: --set probe.images=FOLDER.",
            ) from None


def _annotation(entry: dict[str, Any], image: AnnotatedImage) -> Annotation:
    x, y, width, height = entry["bbox"]
    return Annotation(
        id=1,
        image=image,
        bbox=(x, y, width, height),
        area=entry["area"],
        mask=entry["segmentation"],
        score=entry["score"],
    )
