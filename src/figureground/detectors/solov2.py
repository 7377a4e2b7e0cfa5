"""SOLOv2, learned with FreeSOLO's losses from masks that are only roughly right.

Wang, Zhang, Kong, Li, Shen: SOLOv2: Dynamic and fast instance segmentation. NeurIPS 2020; Wang, Yu, De Mello, Kautz,
Anandkumar, Shen, Alvarez: FreeSOLO: Learning to segment objects without annotations. CVPR 2022. Written from the
papers, with the constants of FreeSOLO's released configurations.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional, init

from figureground.config import Config
from figureground.detectors import solo_losses
from figureground.detectors.exemplar_contrast import ExemplarContrastConfig, exemplar_contrast
from figureground.detectors.initialise import initialise
from figureground.detectors.interface import Detector, batch, resize
from figureground.detectors.mask_rcnn import TINY_RESNET
from figureground.detectors.resnet import ResNetConfig, ResNetPyramid
from figureground.detectors.solo_head import CellHead, MaskFeatures
from figureground.detectors.solo_targets import MASK_STRIDE, assign, fill_boxes, shrink
from figureground.detectors.targets import Truth
from figureground.ops.masks import masks_to_boxes
from figureground.ops.nms import matrix_nms
from figureground.saliency.colour import lab_from_rgb
from figureground.structures import Instances

Grids = tuple[int, int, int, int, int]
Range = tuple[float, float]
# What a cell scores before anything is learned.
_PRIOR = 0.01
# Pixels of enlarged masks at a time, before they are booleans: 256 MB.
_ENLARGED_AT_ONCE = 2**26


class WeakLossConfig(Config):
    """What is asked of masks; the defaults are FreeSOLO's."""

    average: float = Field(default=0.1, ge=0, description="Weight of the average projection (FreeSOLO: 0.1).")
    affinity: float = Field(
        default=0.3, gt=0, le=1, description="Places at least so alike in colour are to be of one side (FreeSOLO: 0.3)."
    )
    dilation: int = Field(default=2, ge=1, description="How far apart they are, in places of 4 px (FreeSOLO: 2).")
    warmup: int = Field(default=1000, ge=0, description="Steps until their loss has its whole weight (FreeSOLO: 1000).")
    bottom: int = Field(
        default=10, ge=0, description="Lowest px of an image, often a frame, without such pairs (FreeSOLO: 10)."
    )


class SOLOv2Config(Config):
    """SOLOv2; the defaults are those of FreeSOLO."""

    detector: Literal["solov2"] = "solov2"
    categories: int = Field(default=1, ge=1, description="How many kinds of objects; 1: `object`.")
    names: dict[int, str] | None = Field(
        default=None,
        description="Of the categories, by their id in COCO files; `train` fills them in; none: `object`, or numbers.",
    )
    backbone: ResNetConfig = ResNetConfig(arch="resnet101")
    grids: Grids = Field(default=(40, 36, 24, 16, 12), description="Cells on a side, level by level (paper: these).")
    ranges: tuple[Range, Range, Range, Range, Range] = Field(
        default=((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)),
        description="Least and greatest size, in px, of each level's objects: the square root of the area of the box "
        "(paper: these).",
    )
    centre: float = Field(
        default=0.2, gt=0, le=1, description="Share of a box's sides within which cells stand for it (paper: 0.2)."
    )
    layers: int = Field(default=4, ge=1, description="Hidden layers of a branch of the cells (paper: 4).")
    width: int = Field(default=512, ge=8, description="Of each (paper: 512).")
    kernel: int = Field(default=256, ge=1, description="Numbers of a kernel and of each mask feature (paper: 256).")
    feature_width: int = Field(default=128, ge=8, description="Hidden layers of the mask features (paper: 128).")
    masks: Literal["weak", "full"] = Field(
        default="weak",
        description="What is learned of masks: their extent and that colours agree, or all of them by the dice loss, "
        "three times as heavy (FreeSOLO: weak; SOLOv2: full).",
    )
    weak: WeakLossConfig = WeakLossConfig()
    embedding_weight: float = Field(
        default=0.0,
        ge=0,
        description="Of the loss of semantic embeddings, which the targets must then have; 0: none are learned "
        "(FreeSOLO's paper: 4; its released code: 0).",
    )
    embedding: int | None = Field(
        default=None, ge=1, description="Numbers of an embedding; `train` fills them in where they are learned."
    )
    candidate_threshold: float = Field(
        default=0.1, ge=0, lt=1, description="Cells that score above this get a mask (FreeSOLO: 0.1)."
    )
    mask_threshold: float = Field(default=0.5, gt=0, lt=1, description="A mask lies above this (paper: 0.5).")
    min_areas: Grids = Field(
        default=(8, 8, 16, 32, 32),
        description="Masks of a level of no more places of 4 px are no objects (published code: these).",
    )
    candidates: int = Field(default=500, ge=1, description="Surest masks that enter Matrix-NMS (paper: 500).")
    sigma: float = Field(default=2.0, gt=0, description="Of its Gaussian (paper: 2).")
    score_threshold: float = Field(
        default=0.05, ge=0, lt=1, description="Instances score above this after it (FreeSOLO: 0.05; to train on: 0.3)."
    )
    max_detections: int = Field(
        default=100, ge=1, description="Instances an image (FreeSOLO: 100; before self-training 20)."
    )
    short_side: int | None = Field(
        default=800,
        ge=32,
        description="Images are looked at with their short side at this many px, not in training; none: as they are "
        "(FreeSOLO: 800).",
    )
    long_side: int = Field(default=1333, ge=32, description="But their long side at no more px (FreeSOLO: 1333).")

    @field_validator("grids")
    @classmethod
    def _cells(cls, grids: Grids) -> Grids:
        if min(grids) < 1:
            raise ValueError(f"Configuration key 'grids': cells on a side, at least 1, got {grids}.")
        return grids


class SOLOv2(Detector):
    """SOLOv2: each cell of five grids says what lies there and makes its mask.

    The score of an instance is that of its cell, times the mean of its mask, lowered by surer ones that it overlaps.

    Presets: ``default`` is FreeSOLO, ``self_train`` the same, for it trains every round alike; ``tiny`` is for a CPU.

    Reference:
        Wang et al., NeurIPS 2020, section 3; Wang et al., CVPR 2022, section 3.3. Deviates: as its parts do; one
        category, where the published configuration has two; boxes are those of the masks; an object's losses, that of
        its cells' category included, can be weighted.
    """

    PRESETS: ClassVar = {
        "default": SOLOv2Config(),
        "self_train": SOLOv2Config(),
        "tiny": SOLOv2Config(
            backbone=TINY_RESNET,
            grids=(14, 12, 10, 8, 6),
            ranges=((1, 20), (14, 32), (24, 48), (36, 72), (60, 2048)),
            layers=2,
            width=64,
            kernel=32,
            feature_width=32,
            weak=WeakLossConfig(warmup=100, bottom=0),
            min_areas=(2, 2, 4, 8, 8),
            short_side=None,
        ),
    }
    config: SOLOv2Config
    exemplars: Tensor | None

    def __init__(self, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        if config.embedding_weight > 0 and config.embedding is None:
            raise ValueError("A SOLOv2 that learns embeddings needs to know how many numbers each has: `embedding`.")
        self._contrast: ExemplarContrastConfig | None = None
        self.register_buffer("exemplars", None, persistent=False)
        # Shapes only: values come from the generator, and the global one is not drawn from.
        with torch.device("meta"):
            self.backbone: Any = ResNetPyramid(config.backbone)
            channels = self.backbone.channels
            self.cells = CellHead(
                channels,
                config.width,
                config.layers,
                config.grids,
                config.categories,
                config.kernel,
                config.embedding if config.embedding_weight > 0 else None,
            )
            self.features = MaskFeatures(channels, config.feature_width, config.kernel)
            self.steps: Tensor
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        initialise(self, generator)
        # Of training, so that a warm-up goes on where it stopped.
        self.steps.zero_()
        assert self.cells.category.bias is not None
        init.constant_(self.cells.category.bias, math.log(_PRIOR / (1 - _PRIOR)))

    def contrast_with(self, exemplars: Float[Tensor, "K E"], config: ExemplarContrastConfig) -> None:
        """From now on learn embeddings beside those of exemplars, too, which stay out of its state.

        Reference:
            Ishtiak, En, Guo: Exemplar-FreeSOLO. CVPR 2023, the exemplar embedding contrastive module.
        """
        if self.config.embedding_weight == 0 or exemplars.shape[1] != self.config.embedding:
            raise ValueError(
                f"Exemplars of {exemplars.shape[1]} numbers need a detector that learns embeddings of as many."
            )
        self.exemplars, self._contrast = exemplars.to(self.steps.device), config

    def losses(
        self, images: list[Float[Tensor, "3 _ _"]], truths: list[Truth], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See :class:`figureground.detectors.interface.Detector`; nothing is drawn."""
        config = self.config
        batched = batch(images)
        size = (batched.shape[2], batched.shape[3])
        assigned = [assign(truth, size, config.grids, config.ranges, config.centre) for truth in truths]
        self.steps += 1
        maps = self.backbone(batched)
        cells, features = self.cells(maps), self.features(maps)
        losses = {"category": _category_loss(cells.categories, truths, assigned)}
        if cells.embeddings is not None:
            losses["embedding"] = config.embedding_weight * _embedding_loss(cells.embeddings, truths, assigned)
            if self._contrast is not None and self.exemplars is not None:
                said = cells.embeddings[torch.stack([positive for _, positive in assigned])]
                losses["exemplar"] = self._contrast.weight * exemplar_contrast(said, self.exemplars, self._contrast)
        logits = [
            convolve(own[positive], of_image)
            for own, of_image, (_, positive) in zip(cells.kernels, features, assigned, strict=True)
        ]
        chosen = [index[positive] for index, positive in assigned]
        targets = [_fitted(shrink(t.masks), features)[own] for t, own in zip(truths, chosen, strict=True)]
        weights = [truth.weights[own] for truth, own in zip(truths, chosen, strict=True)]
        soft, expected, weight = torch.cat(logits).sigmoid(), torch.cat(targets).float(), torch.cat(weights)
        if config.masks == "full":
            each = solo_losses.dice_loss(soft.flatten(1), expected.flatten(1))
            return losses | {"mask": 3 * solo_losses.weighted_mean(each, weight)}
        extent = solo_losses.max_projection_loss(soft, expected)
        average = config.weak.average * solo_losses.average_projection_loss(soft, expected)
        return losses | {
            "max_projection": solo_losses.weighted_mean(extent, weight),
            "average_projection": solo_losses.weighted_mean(average, weight),
            "pairwise": self._pairwise_loss(images, truths, chosen, logits, weights),
        }

    def _pairwise_loss(
        self,
        images: Sequence[Float[Tensor, "3 _ _"]],
        truths: Sequence[Truth],
        chosen: Sequence[Int[Tensor, "_"]],
        logits: Sequence[Float[Tensor, "_ h w"]],
        weights: Sequence[Float[Tensor, "_"]],
    ) -> Float[Tensor, ""]:
        config = self.config.weak
        total, count = logits[0].new_zeros(()), torch.zeros((), dtype=torch.int64, device=logits[0].device)
        for image, truth, index, own, weight in zip(images, truths, chosen, logits, weights, strict=True):
            size = (own.shape[1], own.shape[2])
            alike = alike_in_colour(image, size, config)
            inside = fill_boxes(truth.boxes, size)[index]
            loss, pairs = solo_losses.pairwise_loss(own, alike, inside, weight, config.dilation)
            total, count = total + loss, count + pairs
        return total / count.clamp(min=1) * (self.steps / max(config.warmup, 1)).clamp(max=1)

    @torch.no_grad()
    def detect(
        self,
        images: list[Float[Tensor, "3 _ _"]],
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> list[Instances]:
        """See :class:`figureground.detectors.interface.Detector`.

        Each image is looked at by itself: the grids lie over the whole batch, and what is found in an image is not to
        depend on the padding that others bring.
        """
        config = self.config
        threshold = config.score_threshold if score_threshold is None else score_threshold
        found = []
        for image in images:
            seen = resize(image, config.short_side, config.long_side)
            maps = self.backbone(batch([seen]))
            cells, features = self.cells(maps), self.features(maps)
            scores = keep_peaks(cells.categories.sigmoid(), config.grids)
            soft, sure, labels = self._find(
                scores[0], cells.kernels[0], features[0], threshold, max_detections or config.max_detections
            )
            shown, size = ((each.shape[1], each.shape[2]) for each in (seen, image))
            masks = enlarge(soft, shown, size, config.mask_threshold)
            there = masks.flatten(1).any(1)
            masks = masks[there]
            found.append(Instances(masks, masks_to_boxes(masks), sure[there], labels[there] + 1))
        return found

    def _find(
        self,
        scores: Float[Tensor, "N K"],
        kernels: Float[Tensor, "N C"],
        features: Float[Tensor, "C h w"],
        threshold: float,
        most: int,
    ) -> tuple[Float[Tensor, "M h w"], Float[Tensor, "M"], Int[Tensor, "M"]]:
        """Masks of one image before a threshold, their scores and categories from 0, surest first."""
        config = self.config
        cells, labels = torch.nonzero(scores > config.candidate_threshold, as_tuple=True)
        scores = scores[cells, labels]
        soft = convolve(kernels[cells], features).sigmoid()
        masks = soft > config.mask_threshold
        areas = masks.flatten(1).sum(1)
        counts = torch.tensor([side**2 for side in config.grids], device=areas.device)
        least = torch.tensor(config.min_areas, device=areas.device).repeat_interleave(counts)[cells]
        maskness = (soft * masks).flatten(1).sum(1) / areas.clamp(min=1)
        scores = torch.where(areas > least, scores * maskness, 0.0)
        kept = scores.sort(descending=True, stable=True).indices[: config.candidates]
        kept = kept[scores[kept] > 0]
        soft, masks, scores, labels = soft[kept], masks[kept], scores[kept], labels[kept]
        # Mixed precision would round the areas.
        with torch.autocast(scores.device.type, enabled=False):
            scores = matrix_nms(masks, scores, labels, sigma=config.sigma)
        kept = scores.sort(descending=True, stable=True).indices[:most]
        kept = kept[scores[kept] > threshold]
        return soft[kept], scores[kept], labels[kept]


def convolve(kernels: Float[Tensor, "R C"], features: Float[Tensor, "C h w"]) -> Float[Tensor, "R h w"]:
    """Logits of the mask that each kernel, a 1x1 convolution, makes of features; in float32."""
    return (kernels @ features.flatten(1)).unflatten(1, features.shape[1:]).float()


def keep_peaks(scores: Float[Tensor, "B N K"], grids: Sequence[int]) -> Float[Tensor, "B N K"]:
    """Point NMS: 0 for a cell that the one above, left, or above left of it exceeds.

    Args:
        scores: Of the cells of all levels, each row by row.
        grids: Cells on a side, level by level.

    Reference:
        The published code of SOLOv2; the paper has Matrix-NMS alone.
    """
    kept = []
    for level, side in zip(scores.split([side**2 for side in grids], dim=1), grids, strict=True):
        grid = level.mT.unflatten(2, (side, side))
        highest = functional.max_pool2d(grid, 2, stride=1, padding=1)[:, :, :-1, :-1]
        kept.append(torch.where(grid == highest, grid, 0.0).flatten(2).mT)
    return torch.cat(kept, 1)


@torch.no_grad()
def enlarge(
    soft: Float[Tensor, "M h w"], seen: tuple[int, int], size: tuple[int, int], threshold: float
) -> Bool[Tensor, "M H W"]:
    """Masks at the size of an image: enlarged to the batch's pixels, cut to what was seen, resized, cut at a threshold.

    Args:
        soft: Masks in [0, 1] at stride 4, the padding of the batch included.
        seen: ``(height, width)`` at which the image was looked at.
        size: Of the image.
        threshold: Masks lie above it.
    """
    masks = torch.zeros(len(soft), *size, dtype=torch.bool, device=soft.device)
    at_once = max(1, _ENLARGED_AT_ONCE // max(soft[0].numel() * MASK_STRIDE**2, size[0] * size[1])) if len(soft) else 1
    for first in range(0, len(soft), at_once):
        part = slice(first, first + at_once)
        large = functional.interpolate(soft[part, None], scale_factor=MASK_STRIDE, mode="bilinear")
        large = large[:, :, : seen[0], : seen[1]]
        if seen != size:
            large = functional.interpolate(large, size=size, mode="bilinear")
        masks[part] = large[:, 0] > threshold
    return masks


@torch.no_grad()
def alike_in_colour(
    image: Float[Tensor, "3 H W"], size: tuple[int, int], config: WeakLossConfig
) -> Bool[Tensor, "8 h w"]:
    """Whether each place of an image at stride 4 and the eight around it are of one colour; no place outside is.

    Args:
        image: RGB in [0, 1].
        size: ``(height, width)`` of the map, which the padding of the batch may make larger.
        config: How alike, how far apart, and how much of the bottom is left out.
    """
    height = max(image.shape[1] - config.bottom, 0)
    # Mixed precision would round the product that turns RGB into XYZ.
    with torch.autocast(image.device.type, enabled=False):
        small = functional.avg_pool2d(image.float()[None], MASK_STRIDE, ceil_mode=True, count_include_pad=False)
        lab = lab_from_rgb(small)[0]
    places = torch.arange(lab.shape[1], device=lab.device)[:, None] * MASK_STRIDE
    valid = (places < height).expand(lab.shape[1:])
    alike = solo_losses.colour_affinity(lab, valid, config.dilation) >= config.affinity
    return functional.pad(alike, (0, size[1] - lab.shape[2], 0, size[0] - lab.shape[1]))


def _category_loss(
    logits: Float[Tensor, "B N K"],
    truths: Sequence[Truth],
    assigned: Sequence[tuple[Int[Tensor, "N"], Bool[Tensor, "N"]]],
) -> Float[Tensor, ""]:
    targets, weights = torch.zeros_like(logits), torch.ones_like(logits[:, :, 0])
    for own, weight, truth, (index, positive) in zip(targets, weights, truths, assigned, strict=True):
        chosen = index[positive]
        own[positive] = functional.one_hot(truth.labels[chosen], logits.shape[2]).to(own)
        weight[positive] = truth.weights[chosen].to(weight)
    count = int(sum(positive.sum() for _, positive in assigned))
    return solo_losses.category_loss(logits.flatten(0, 1), targets.flatten(0, 1), weights.flatten(), count)


def _embedding_loss(
    predicted: Float[Tensor, "B N E"],
    truths: Sequence[Truth],
    assigned: Sequence[tuple[Int[Tensor, "N"], Bool[Tensor, "N"]]],
) -> Float[Tensor, ""]:
    targets, weights = [], []
    for image, (truth, (index, positive)) in enumerate(zip(truths, assigned, strict=True)):
        if truth.embeddings is None or truth.embeddings.shape[1] != predicted.shape[2]:
            raise ValueError(f"The target of image {image} needs embeddings of {predicted.shape[2]} numbers to learn.")
        targets.append(truth.embeddings[index[positive]].float())
        weights.append(truth.weights[index[positive]])
    positive = torch.stack([positive for _, positive in assigned])
    expected = torch.cat(targets)
    # Of some objects it is not known.
    known = expected.any(1)
    return solo_losses.embedding_loss(predicted[positive][known], expected[known], torch.cat(weights)[known])


def _fitted(masks: Bool[Tensor, "M _ _"], features: Tensor) -> Bool[Tensor, "M h w"]:
    """Masks padded, right and bottom, to the size of the features."""
    return functional.pad(masks, (0, features.shape[3] - masks.shape[2], 0, features.shape[2] - masks.shape[1]))
