"""What `semantic cluster`, `probe` and `retrieve` have in common: an image to embedded pixels and embedded segments."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional

from figureground import backbones
from figureground.config import Config
from figureground.data.annotation_file import find_annotations
from figureground.data.label_file import LabelFile
from figureground.data.listing import ImageList, list_images
from figureground.data.resize import fit_size, resize_image, to_tensor
from figureground.data.semantic_truth import SemanticTruth, open_semantic_truth
from figureground.errors import ImageError, RunError, UsageError
from figureground.refine.dense_crf import DenseCRFConfig
from figureground.runners import Runner, run_serial
from figureground.segmenters import checkpoint
from figureground.stages.detecting import digest_of
from figureground.stages.labeller import BackboneConfig, check_device
from figureground.stages.labels import find_labels
from figureground.stages.result import Progress
from figureground.stages.resume import check_config
from figureground.stages.sharding import File, Record, Sweep, Work, describe_run, opened
from figureground.storage.atomic import make_folder
from figureground.storage.lock import exclusive

Side = Literal["train", "val"]

PUBLISHED_CRF = DenseCRFConfig(
    gaussian_sxy=1, gaussian_compat=3, bilateral_sxy=67, bilateral_srgb=3, bilateral_compat=4
)
"""MaskContrast's, of DeepLab."""

FREE = ("device", "model", "train", "train_images", "train_masks", "val", "val_images", "val_masks")
"""What may differ when a run goes on: where it computes, and where its input lies (``digests`` tell which it is)."""


class SemanticConfig(Config):
    """What decides how an image becomes embedded pixels and segments."""

    model: str | None = Field(
        default=None, description="A run of `semantic train`, or its file; none: the features of a backbone."
    )
    backbone: BackboneConfig | None = Field(
        default=None, description="Whose patch features are the embeddings, where there is no model."
    )
    size: int = Field(
        default=512,
        ge=16,
        le=4096,
        description="Side in px of the square whose area an image is brought to (MaskContrast: 512 x 512).",
    )
    val: str = Field(default="", description="Truth to measure by: a folder with classes.json, or a COCO file.")
    val_images: str | None = Field(default=None, description="Folder of its images; none: as the truth says.")
    digests: dict[str, str] = Field(default={}, description="Of the model and the truths; filled in.")
    shard_size: int = Field(default=32, ge=1, le=10_000, description="Images a shard: what a kill can cost at most.")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @field_validator("model", "val", "val_images")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        # A run can then be gone on with from any folder.
        return os.path.abspath(os.path.expanduser(path)) if path else path

    @model_validator(mode="after")
    def _one_embedding(self) -> "SemanticConfig":
        if (self.model is None) == (self.backbone is None):
            raise ValueError("Give either a MODEL, a run of `semantic train`, or --backbone, and not both.")
        return self


def embedding_name(config: SemanticConfig) -> str:
    """What embeds pixels, as a report says it."""
    if config.model is not None:
        return f"the embeddings of {config.model}"
    assert config.backbone is not None
    return f"the {config.backbone.features} of {config.backbone.name}"


class Embedder:
    """Turns images into embeddings of their pixels: a trained segmenter's, or the patch features of any backbone.

    Args:
        config: Which, at which size and on which device.

    Attributes:
        digest: Of the segmenter's file; empty for a backbone, whose name and weights tell which it is.
        seconds: Spent in each part.

    Raises:
        UsageError: If a name does not exist or the device is not there.
        WeightsError: If weights cannot be had.
    """

    def __init__(self, config: SemanticConfig) -> None:
        check_device(config.device)
        self.size, self.device = config.size, config.device
        self.seconds: dict[str, float] = {}
        self.digest = ""
        self.model: Any
        if config.model is not None:
            self.model = checkpoint.load(config.model).to(config.device)
            file = Path(config.model)
            self.digest = digest_of(file / checkpoint.FILE if file.is_dir() else file)
            # A ResNet's map is a sixteenth of its image at most.
            shape = self.model.config
            self.patch_size, self.learned = (shape.vit.patch_size if shape.arch == "vit" else 16), True
        else:
            assert config.backbone is not None
            choice = config.backbone
            self.model = backbones.load(
                choice.name, choice.weights, choice.features, precision=choice.precision, device=config.device
            )
            self.patch_size, self.learned = self.model.patch_size, False

    @torch.inference_mode()
    def __call__(
        self, pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
    ) -> tuple[Float[Tensor, "D h w"], Float[Tensor, "h w"] | None]:
        """Embed an image.

        Args:
            pixels: RGB; may be smaller than the image is on disk.
            size: ``(height, width)`` of the image on disk.

        Returns:
            Embeddings of unit length, of the pixels at the size they are looked at, or of patches; and the probability
            of being an object, where the model knows it.
        """
        with self.timed("features"):
            images = self._images(pixels, size)
            if not self.learned:
                return functional.normalize(self._features(images), dim=0), None
            features = self.model.features(images)
            embedding = self.model.enlarge(self.model.embedding(features), images)[0]
            saliency = self.model.enlarge(self.model.saliency(features), images)[0, 0]
            return functional.normalize(embedding.float(), dim=0), saliency.float().sigmoid()

    @torch.inference_mode()
    def features(
        self, pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], scale: float = 1.0
    ) -> Float[Tensor, "D h w"]:
        """What a linear layer is learned on: what the segmenter's last layer looks at, or the features of patches.

        Args:
            pixels: RGB.
            size: As of a call.
            scale: Times the usual size is it looked at.
        """
        with self.timed("features"):
            images = self._images(pixels, size, scale)
            return (self.model.features(images)[0] if self.learned else self._features(images)).float()

    def _images(
        self, pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], scale: float = 1.0
    ) -> Float[Tensor, "1 3 h w"]:
        fitted = fit_size(size, round(self.size * scale), self.patch_size)
        return to_tensor(resize_image(pixels, fitted), self.device)

    def _features(self, images: Float[Tensor, "1 3 H W"]) -> Float[Tensor, "D h w"]:
        try:
            return self.model(images).values[0].float().permute(2, 0, 1)
        except ValueError as error:
            raise ImageError(f"No features could be made of the image: {error}") from error

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of a block to ``seconds[part]``."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Photographs:
    """Images to learn from.

    Attributes:
        images: They.
        run: The run that lists them; ``None`` for plain files.
    """

    images: ImageList
    run: Path | None


def find_photographs(inputs: Sequence[str], folder: str | None, exclude: Path) -> Photographs:
    """The images of a run, of a truth, or of files and folders.

    Args:
        inputs: A run's folder, a COCO file, a folder with classes.json; or files and folders.
        folder: Where the images of a run or a truth are, if it does not say.
        exclude: A folder to leave out: the run's own.

    Raises:
        UsageError: If there is none.
    """
    if len(inputs) == 1:
        path = Path(inputs[0]).expanduser()
        if (path / "classes.json").is_file():
            return Photographs(open_semantic_truth(path, Path(folder) if folder else None).images, None)
        if find_annotations(path) is not None or (path.suffix in (".json", ".parquet") and path.is_file()):
            file, root = find_labels(path, [folder] if folder else [])
            names = tuple(image["file_name"] for image in LabelFile(file))
            return Photographs(ImageList(root, names, 0), path)
    return Photographs(list_images(inputs, exclude=exclude), None)


def open_truth(config: SemanticConfig, side: Side) -> SemanticTruth:
    """The truth that a configuration names.

    Raises:
        UsageError: If there is none.
    """
    path, images = getattr(config, side), getattr(config, f"{side}_images")
    if not path:
        raise UsageError(
            f"--{side} is missing: there is no truth.",
            "It is a folder with classes.json, or a COCO file whose objects have classes (`figureground truth`).",
        )
    return open_semantic_truth(Path(path), None if images is None else Path(images))


def check_digests(config: SemanticConfig, digests: Mapping[str, str]) -> None:
    """Raise :class:`RunError` if inputs are not those that the configuration was made for."""
    for name, digest in digests.items():
        if config.digests.get(name, digest) != digest:
            raise RunError(f"What `{name}` names is not what it was when the run was started.")


def check_same_classes(train: SemanticTruth, val: SemanticTruth) -> None:
    """Raise :class:`UsageError` if two truths do not name the same classes in the same order."""
    if train.classes != val.classes:
        differ = sorted(set(train.classes) ^ set(val.classes))
        what = f"{differ[0]!r} is in one only" if differ else "their order differs"
        raise UsageError(
            f"{train.path} and {val.path} differ in their classes ({len(train.classes)}, {len(val.classes)}): {what}.",
            "Give both folders one classes.json, or both COCO files one list as `info.classes`.",
        )


@contextmanager
def opened_run(out: Path, config: SemanticConfig, parts: Sequence[str]) -> Iterator[None]:
    """Hold a run's folder, and in it one for each of the sweeps; see :func:`~figureground.stages.sharding.opened`."""
    make_folder(out)
    with ExitStack() as stack:
        stack.enter_context(exclusive(out))
        check_config(config, out / "config.json", FREE)
        for part in parts:
            stack.enter_context(opened(out / part, config, FREE))
        describe_run(out, config, config.device)
        yield


class _Look(Protocol):
    digests: dict[str, str]

    def examine(self, files: Sequence[File]) -> Iterator[Record | ImageError]: ...

    seconds: dict[str, float]


def prepare_looks(
    config: SemanticConfig, sides: Mapping[Side, tuple[ImageList, Callable[..., _Look]]], runner: Runner
) -> tuple[Any, dict[str, tuple[ImageList, Work]]]:
    """Make what looks at the images once in this process, so that what is wrong is said before a folder is made.

    Args:
        config: What to use.
        sides: The images and what looks at them, from the configuration (and an ``embedder``).
        runner: What will apply the work; where that is in other processes, this one may have no accelerator.

    Returns:
        The configuration with the digests of all inputs, and the images and the work of each side.
    """
    here = config if runner is run_serial else config.replace(device="cpu")
    embedder = Embedder(here)
    made = {side: make(here, embedder=embedder) for side, (_, make) in sides.items()}
    config = config.replace(digests={name: text for look in made.values() for name, text in look.digests.items()})
    return config, {
        side: (images, Work(make, config, made[side] if runner is run_serial else None))
        for side, (images, make) in sides.items()
    }


def sweep_all(
    looks: Mapping[str, tuple[ImageList, Work]],
    out: Path,
    shard_size: int,
    runner: Runner,
    progress: Callable[[Progress], None],
) -> dict[str, Sweep]:
    """Look at sets of images one after the other.

    Args:
        looks: The images and the work by the name of a folder.
        out: The run's folder, opened by :func:`opened_run`.
        shard_size: Images a shard.
        runner: What applies the work to the shards.
        progress: Called with the progress of all together.
    """
    sweeps = {name: Sweep(out / name, images, images.names, shard_size) for name, (images, _) in looks.items()}
    reports = in_turn(progress, [sweep.total for sweep in sweeps.values()])
    for (name, sweep), report in zip(sweeps.items(), reports, strict=True):
        sweep.run(looks[name][1], runner, report)
    return sweeps


def in_turn(progress: Callable[[Progress], None], counts: Sequence[int]) -> Iterator[Callable[[Progress], None]]:
    """Make one report of several sweeps, one after the other.

    Args:
        progress: Called with all of them together.
        counts: Images of each.
    """
    before = Progress(0, 0, 0, 0, 0)
    for _ in counts:
        last = before

        def report(now: Progress, base: Progress = before) -> None:
            nonlocal last
            last = Progress(
                base.done + now.done,
                sum(counts),
                base.fresh + now.fresh,
                base.instances + now.instances,
                base.failed + now.failed,
            )
            progress(last)

        yield report
        before = last
