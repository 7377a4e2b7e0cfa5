"""The segments of images: where objects are, by a model, a run or `label`, and one embedding for each."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional

from figureground.data.images import decode
from figureground.data.label_file import LabelFile
from figureground.errors import ConfigError, ImageError, UsageError
from figureground.evaluation.semantic_miou import confusion_matrix
from figureground.ops.components import split_components
from figureground.ops.masks import resize_masks
from figureground.ops.rle import RLE, encode
from figureground.ops.rle import decode as decode_masks
from figureground.refine.dense_crf import DenseCRFConfig, dense_crf_masks
from figureground.stages.detecting import digest_of
from figureground.stages.instance_features import pack, unpack
from figureground.stages.labeller import Labeller, LabellerConfig
from figureground.stages.labels import annotations_of
from figureground.stages.semantic_features import (
    PUBLISHED_CRF,
    Embedder,
    SemanticConfig,
    Side,
    check_digests,
    open_truth,
)
from figureground.stages.sharding import File, Record, Sweep, one_by_one

Foreground = Literal["saliency", "masks", "label"]
Segmentation = Literal["union", "best", "instances"]
# Components of a saliency below this share of the image are no instances (MaskContrast's filter of its prior).
_LEAST = 0.01


class SegmentConfig(SemanticConfig):
    """What decides the segments, too."""

    train_masks: str | None = Field(default=None, description="Run with the masks of the training images.")
    val_masks: str | None = Field(default=None, description="Run with the masks of the images of the truth.")
    foreground: Foreground | None = Field(
        default=None,
        description="What is object: the model's `saliency` above 0.5, a run's `masks`, or what `label` finds; none: "
        "saliency with a model, else masks where a run is given, else label.",
    )
    label: LabellerConfig | None = Field(default=None, description="How `label` finds objects; none: its defaults.")
    segments: Segmentation = Field(
        default="union",
        description="`union`: one segment an image, of all its objects (MaskContrast); `best`: the surest object; "
        "`instances`: each object by itself (ours).",
    )
    min_score: float = Field(default=0.0, ge=0, le=1, description="Masks below are left out; without a score: 1.")
    crf: bool = Field(default=False, description="Draw the segments of the truth's images to the edges.")
    dense_crf: DenseCRFConfig = PUBLISHED_CRF

    @field_validator("train_masks", "val_masks")
    @classmethod
    def _runs_absolute(cls, path: str | None) -> str | None:
        return os.path.abspath(os.path.expanduser(path)) if path else path

    @model_validator(mode="after")
    def _foreground_is_there(self) -> "SegmentConfig":
        if self.foreground == "saliency" and self.model is None:
            raise ValueError("foreground=saliency needs a MODEL; a backbone knows no saliency.")
        chosen = self.foreground or ("saliency" if self.model is not None else None)
        runs = (self.train_masks, self.val_masks)
        if chosen in ("saliency", "label") and any(runs):
            raise ValueError(f"Masks of a run are given, but the foreground is `{chosen}`. Add --set foreground=masks.")
        if self.label is not None and (chosen or ("masks" if all(runs) else "label")) != "label":
            raise ValueError("label.* is set, but the foreground is not `label`. Add --set foreground=label.")
        return self


class RunMasks:
    """The masks of a run, by the names of images.

    Args:
        run: Its folder, or a COCO file.
        min_score: Masks below are left out.

    Raises:
        UsageError: If there is none, or it has no mask.
    """

    def __init__(self, run: Path, min_score: float) -> None:
        self.file = annotations_of(run)
        self._labels, self._min_score = LabelFile(self.file), min_score
        self.names = tuple(image["file_name"] for image in self._labels)
        self._places: dict[str, int | None] = {}
        for place, name in enumerate(self.names):
            for key in {name, PurePosixPath(name).name}:
                # Of two of one name, neither.
                self._places[key] = None if key in self._places else place
        self._places |= {name: place for place, name in enumerate(self.names)}
        if not any(self._of(place) for place in range(len(self.names))):
            raise UsageError(
                f"{self.file} has no mask ({self._labels.annotations} masks, {min_score:g} is the least score).",
                "Name the run of `label` or `predict`, or lower min_score.",
            )

    def __call__(self, name: str, size: tuple[int, int]) -> list[RLE]:
        """The masks of an image, surest first.

        Raises:
            ImageError: If the run does not list the image, or has masks of another size.
        """
        place = self._places.get(name)
        place = self._places.get(PurePosixPath(name).name) if place is None else place
        if place is None:
            raise ImageError(f"{self.file} does not list the image: it has no masks.")
        image = self._labels[place]
        if (image["height"], image["width"]) != size:
            raise ImageError(
                f"The image has {size[0]}x{size[1]} px, but its masks have {image['height']}x{image['width']} "
                "(height x width)."
            )
        return self._of(place)

    def _of(self, place: int) -> list[RLE]:
        entries = [(1 if each["score"] is None else each["score"], each) for each in self._labels[place]["annotations"]]
        entries = [pair for pair in entries if pair[0] >= self._min_score]
        return [each["segmentation"] for _, each in sorted(entries, key=lambda pair: -pair[0])]


class Segmenting:
    """Finds the segments in the images of a shard and embeds each.

    Args:
        config: What is a segment.
        side: Whose images: what differs is where their masks and their truth are, and that those that are measured may
            be drawn to the edges.
        counted: Whether the pixels of segments are counted by their true classes.
        embedder: Embeds pixels, if this process has one already.

    Attributes:
        seconds: Spent in each part.
        masks: The run whose masks are the foreground; ``None`` where they are not.
        truth: Where pixels are counted.

    Raises:
        ConfigError: If the foreground is a run's masks and there is no run.
        UsageError: If a run has no masks, or there is no truth.
        RunError: If the inputs are not those that the configuration was made for, as files of another machine.
    """

    def __init__(self, config: SegmentConfig, side: Side, counted: bool, embedder: Embedder | None = None) -> None:
        self.config, self._crf = config, config.crf and side == "val"
        self._embedder = embedder or Embedder(config)
        self.seconds = self._embedder.seconds
        run = getattr(config, f"{side}_masks")
        self.foreground: Foreground = resolve_foreground(config, run is not None)
        self.masks = RunMasks(Path(run), config.min_score) if run is not None and self.foreground == "masks" else None
        self.truth = open_truth(config, side) if counted else None
        self.digests = {"model": self._embedder.digest}
        if self.masks is not None:
            self.digests[f"{side}_masks"] = digest_of(self.masks.file)
        if self.truth is not None:
            self.digests[side] = self.truth.digest
        check_digests(config, self.digests)
        self._labeller: Labeller | None = None
        if self.foreground == "label":
            self._labeller = Labeller((config.label or LabellerConfig()).replace(device=config.device))

    def examine(self, files: Sequence[File]) -> Iterator[Record | ImageError]:
        """The record of each image, or what is wrong with it.

        A record has ``segments``, runs that do not overlap, ``vectors`` and ``count``; where there is a truth, also
        ``counts``, the pixels by class of what is no segment and of each segment.
        """
        return one_by_one(self._look, files)

    def _look(self, path: Path, name: str) -> Record:
        with self._embedder.timed("decode"):
            pixels, size = decode(path)
        values, saliency = self._embedder(pixels, size)
        with self._embedder.timed("masks"):
            masks = self._masks(name, pixels, size, saliency)
        vectors = [mean_inside(values, mask) for mask in masks]
        if self._crf and len(masks):
            with self._embedder.timed("refine"):
                image = torch.from_numpy(np.array(pixels)).to(self.config.device)
                soft = dense_crf_masks(image, masks.to(self.config.device), self.config.dense_crf).cpu()
                masks = (soft == soft.amax(0)) & (soft > 0.5)
        owners = owner_map(masks, size)
        record: Record = {
            "file_name": name,
            "height": size[0],
            "width": size[1],
            "segments": [rle["counts"] for rle in encode(owners == torch.arange(1, len(masks) + 1)[:, None, None])],
            "vectors": pack(torch.stack(vectors).cpu().numpy()) if vectors else "",
            "count": len(masks),
            "instances": len(masks),
        }
        if self.truth is not None:
            with self._embedder.timed("truth"):
                true = self.truth.class_map(name, size)
                classes = len(self.truth.classes)
                record["counts"] = confusion_matrix(owners.numpy(), true, len(masks) + 1, classes).tolist()
        return record

    def _masks(
        self, name: str, pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], saliency: Tensor | None
    ) -> Bool[Tensor, "S H W"]:
        if self.foreground == "saliency":
            assert saliency is not None
            soft = functional.interpolate(saliency[None, None], size=size, mode="bilinear")[0]
            masks = soft.cpu() > 0.5
            if self.config.segments != "union":
                masks, _ = split_components(masks, _LEAST * size[0] * size[1])
                masks = masks[masks.flatten(1).sum(1).argsort(descending=True, stable=True)]
        elif self.foreground == "masks":
            assert self.masks is not None
            masks = decode_masks(self.masks(name, size)).view(-1, *size)
        else:
            assert self._labeller is not None
            try:
                found = self._labeller(pixels, size)
            except ValueError as error:
                raise ImageError(f"No features could be made of the image: {error}") from error
            masks = resize_masks(found.masks[found.scores >= self.config.min_score].cpu(), size)
        masks = masks[masks.flatten(1).any(1)]
        if self.config.segments == "union":
            return masks.any(0, keepdim=True) if len(masks) else masks
        return masks[:1] if self.config.segments == "best" else masks


def resolve_foreground(config: SegmentConfig, has_run: bool) -> Foreground:
    """What is object, as the configuration says or its rule."""
    chosen = config.foreground
    if chosen is None:
        chosen = "saliency" if config.model is not None else "masks" if has_run else "label"
    if chosen == "masks" and not has_run:
        raise ConfigError(
            "foreground=masks needs a run with masks, of the training images and of those of the truth.",
            "Name them: --set train_masks=RUN and --set val_masks=RUN.",
        )
    return chosen


def mean_inside(values: Float[Tensor, "D h w"], mask: Bool[Tensor, "H W"]) -> Float[Tensor, "D"]:
    """The direction of the mean over a mask; a patch counts with the share of it that the mask covers."""
    h, w = values.shape[1:]
    covered = functional.adaptive_avg_pool2d(mask[None].float(), (h, w))[0].to(values.device)
    return functional.normalize((values * covered).sum((1, 2)), dim=0)


def owner_map(masks: Bool[Tensor, "S H W"], size: tuple[int, int]) -> Int[Tensor, "H W"]:
    """The number of the first mask that covers a pixel, from 1; 0 where there is none."""
    owners = torch.zeros(size, dtype=torch.int64)
    for number in range(len(masks), 0, -1):
        owners[masks[number - 1].cpu()] = number
    return owners


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """The segments of a set of images, all together; no pixels.

    Attributes:
        files: Records of the images that could be used, without vectors.
        vectors: Of unit length.
        images: Place in ``files`` of the image of each.
        counts: Pixels of each by class, where there is a truth.
        ground: Pixels of each image, by class, that are in no segment.
    """

    files: list[Record]
    vectors: Float[np.ndarray, "N D"]
    images: Int64[np.ndarray, "N"]
    counts: Int64[np.ndarray, "N C"]
    ground: Int64[np.ndarray, "I C"]

    def masks(self, image: int) -> Bool[np.ndarray, "S H W"]:
        """The segments of an image, which do not overlap."""
        record = self.files[image]
        size = [record["height"], record["width"]]
        rles: list[RLE] = [{"size": size, "counts": counts} for counts in record["segments"]]
        return decode_masks(rles).view(-1, *size).numpy()


def gather_segments(sweep: Sweep, classes: int = 0) -> Segments:
    """What a sweep with :class:`Segmenting` has made.

    Args:
        sweep: Run.
        classes: Of the truth; 0 without one.
    """
    files, vectors, images, counts, ground = [], [], [], [], []
    for place, record in enumerate(sweep.records()):
        if record["count"]:
            vectors.append(unpack(record["vectors"], record["count"]))
        images += [place] * record["count"]
        rows = record.get("counts") or [[]] * (record["count"] + 1)
        ground.append(rows[0])
        counts += rows[1:]
        files.append({key: record[key] for key in ("file_name", "height", "width", "segments", "count")})
    return Segments(
        files,
        np.concatenate(vectors) if vectors else np.zeros((0, 0), dtype=np.float32),
        np.array(images, dtype=np.int64),
        np.array(counts, dtype=np.int64).reshape(len(images), classes),
        np.array(ground, dtype=np.int64).reshape(len(files), classes),
    )
