"""What a backbone is good for while it is learned: classes told apart, objects found."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field, field_validator
from torch import Tensor, nn

from figureground.backbones.catalogue import Row
from figureground.backbones.vit import ViT
from figureground.config import Config
from figureground.data.crops import central_windows, resample
from figureground.data.images import decode
from figureground.data.resize import fit_size, resize_image, to_tensor
from figureground.data.squares import load_squares
from figureground.data.tars import ImageFile
from figureground.data.truth import AnnotatedImage, Annotation, AnnotationSet, read_truth
from figureground.errors import ConfigError, ImageError, UsageError
from figureground.evaluation.corloc import corloc
from figureground.evaluation.knn import knn_accuracy
from figureground.proposals import create
from figureground.training.dino import DinoConfig
from figureground.training.order import generator_for

_BATCH = 64
# One image in so many is a query.
_QUERY_EVERY = 5


class ProbeConfig(Config):
    """What is measured while a backbone is learned; nothing of it reaches the backbone."""

    labels: Literal["none", "folder", "prefix"] = Field(
        default="none",
        description="Where an image's class stands, for the accuracy of k-NN: its `folder`, or the `prefix` of its "
        "name up to the last hyphen.",
    )
    knn_images: int = Field(default=5000, ge=10, description="Images of it, drawn once; a fifth of them are queries.")
    k: int = Field(default=20, ge=1, description="Neighbours that vote (paper: 20).")
    temperature: float = Field(default=0.07, gt=0, description="Of their votes (paper: 0.07).")
    features: Literal["cls", "mean"] = Field(
        default="cls", description="What an image is told by: the CLS token (paper), or the mean of its patches."
    )
    truth: str | None = Field(default=None, description="COCO file of true boxes, for CorLoc.")
    images: str | None = Field(default=None, description="Folder of its images.")
    corloc_images: int = Field(default=100, ge=1, description="First images of it that are looked at.")
    method: str = Field(default="tokencut", description="Discovery method whose surest box is taken.")
    size: int = Field(default=224, ge=16, description="Side in px of the square whose area an image is brought to.")

    @field_validator("truth", "images")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return os.path.abspath(os.path.expanduser(path)) if path else None


class KnnProbe:
    """Accuracy of k-NN among the images that the backbone is learned from.

    Args:
        files: The images.
        config: Where their classes stand, and how they vote.
        dino: For the normalisation.
        side: At which an image's middle is looked at, px.
        seed: Of the choice of images.
        device: Where to compute.

    Raises:
        ConfigError: If there are not two classes.
    """

    def __init__(
        self, files: Sequence[ImageFile], config: ProbeConfig, dino: DinoConfig, side: int, seed: int, device: str
    ) -> None:
        self.config = config
        order = torch.randperm(len(files), generator=generator_for(seed, "probe"))[: config.knn_images].tolist()
        failed: set[str] = set()
        chosen = [files[index] for index in order]
        squares = load_squares(chosen, side, failed=lambda name, _: failed.add(name))
        names = [class_of(file.name, config.labels) for file in chosen if file.name not in failed]
        classes = sorted(set(names))
        if len(classes) < 2:
            raise ConfigError(
                f"The accuracy of k-NN needs images of two classes or more, but probe.labels={config.labels} finds "
                f"{len(classes)}.",
                "Leave it out (--set probe.labels=none), or give a folder of folders, one for each class.",
            )
        index = {name: place for place, name in enumerate(classes)}
        self.labels: Int64[Tensor, "N"] = torch.tensor([index[name] for name in names])
        # As bytes, and cut anew each time: cropped and as floats they would take five times the memory.
        self.pixels, self.windows = squares.pixels, central_windows(squares.aspects)
        self.mean, self.std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (dino.mean, dino.std))
        self.side, self.device = side, device

    def __call__(self, backbone: nn.Module) -> float:
        """The share of the queries that is told right."""
        batches = zip(self.pixels.split(_BATCH), self.windows.split(_BATCH), strict=True)
        features = torch.cat([self._features(backbone, *batch) for batch in batches])
        asked = torch.arange(len(features)) % _QUERY_EVERY == 0
        known, labels = features[~asked], self.labels[~asked]
        return knn_accuracy(known, labels, features[asked], self.labels[asked], self.config.k, self.config.temperature)

    @torch.inference_mode()
    def _features(
        self, backbone: Any, pixels: UInt8[Tensor, "B S S 3"], windows: Float[Tensor, "B 4"]
    ) -> Float[Tensor, "B D"]:
        upright = torch.zeros(len(pixels), dtype=torch.bool)
        images = resample(pixels.to(self.device).float() / 255, windows, upright, self.side)
        tokens = backbone.forward_features((images - self.mean) / self.std)
        return (tokens[:, 0] if self.config.features == "cls" else tokens[:, 1:].mean(1)).float().cpu()


def class_of(name: str, labels: str) -> str:
    """The class that an image's name tells.

    Example:
        >>> class_of("birds.tar/wren/bird-07.jpg", "folder"), class_of("birds.tar/wren/bird-07.jpg", "prefix")
        ('birds.tar/wren', 'bird')
    """
    path = PurePosixPath(name)
    return str(path.parent) if labels == "folder" else path.stem.rpartition("-")[0]


class CorLocProbe:
    """In how many images the surest box that a discovery method finds lies on an object.

    Args:
        config: Method, truth and images.
        dino: Of the backbone.
        device: Where to compute.

    Raises:
        UsageError: If the truth or an image cannot be read, or the method does not exist.
    """

    def __init__(self, config: ProbeConfig, dino: DinoConfig, device: str) -> None:
        assert config.truth is not None
        if config.images is None:
            raise ConfigError("probe.truth is given without its images.", "Add --set probe.images=FOLDER.")
        truth = read_truth(Path(config.truth))
        self.truth = truth.within(truth.images[: config.corloc_images])
        self.method = create(config.method)
        self.dino, self.device = dino, device
        self.images = [self._load(image, Path(config.images), config.size) for image in self.truth.images]

    def __call__(self, backbone: Any) -> float:
        """CorLoc of the images that have true boxes."""
        # The adapter takes a model's parts over.
        vit = ViT(copy.deepcopy(backbone), self._row, "keys", "fp32")
        found: dict[int, tuple[Annotation, ...]] = {}
        for image, pixels in zip(self.truth.images, self.images, strict=True):
            with torch.inference_mode():
                [instances] = self.method.propose(vit(to_tensor(pixels, self.device)), to_tensor(pixels, self.device))
            if len(instances):
                patch = self.dino.vit.patch_size
                scale = torch.tensor([image.width / pixels.shape[1], image.height / pixels.shape[0]]).repeat(2) * patch
                x1, y1, x2, y2 = (instances.boxes[0].cpu() * scale).tolist()
                box = (x1, y1, x2 - x1, y2 - y1)
                found[image.id] = (Annotation(1, image, box, box[2] * box[3], score=1.0),)
        return float(np.mean(corloc(self.truth, AnnotationSet(self.truth.path, self.truth.images, found))))

    def _load(self, image: AnnotatedImage, folder: Path, size: int) -> np.ndarray:
        try:
            pixels, _ = decode(folder / image.file_name)
        except ImageError as error:
            raise UsageError(
                f"{folder / image.file_name}, which {self.truth.path} names, cannot be read: {error.message}",
                "Give the folder that its file names are relative to: --set probe.images=FOLDER.",
            ) from None
        return resize_image(pixels, fit_size((image.height, image.width), size, self.dino.vit.patch_size))

    @property
    def _row(self) -> Row:
        return Row(
            name="learned here",
            family="own",
            patch_size=self.dino.vit.patch_size,
            width=self.dino.vit.width,
            heads=self.dino.vit.heads,
            mean=self.dino.mean,
            std=self.dino.std,
            paper="Caron et al., ICCV 2021",
        )
