"""From regions to objects with boxes and scores, in one stage or in a cascade of them.

Girshick: Fast R-CNN. ICCV 2015; Cai, Vasconcelos: Cascade R-CNN: delving into high quality object detection. CVPR 2018.
Written from the papers, with the constants of CutLER's released configurations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import box_iou

from figureground.config import Config
from figureground.detectors.boxes import BoxWeights, clip, decode, encode, not_empty
from figureground.detectors.losses import Weigh, box_loss, classification_loss, soft_targets
from figureground.detectors.matching import Matches, match, sample
from figureground.detectors.pooling import pool
from figureground.detectors.targets import Truth


class StageConfig(Config):
    """One stage."""

    iou: float = Field(default=0.5, gt=0, le=1, description="A region stands for an object from this IoU (paper: 0.5).")
    weights: BoxWeights = Field(
        default=(10, 10, 5, 5), description="Of the differences in x, y, width and height (paper: 10, 10, 5, 5)."
    )


class BoxHeadConfig(Config):
    """Size of a stage, and what it is trained on."""

    pool: int = Field(default=7, ge=1, description="Side of a region's features (paper: 7).")
    width: int = Field(default=1024, ge=1, description="Of the two hidden layers (paper: 1024).")
    samples: int = Field(default=512, ge=1, description="Regions an image trained on (CutLER: 512).")
    positive_fraction: float = Field(
        default=0.25, gt=0, le=1, description="At most this share of them stands for objects (CutLER: 0.25)."
    )


class BoxStage(nn.Module):
    """Two hidden layers; logits of each category and, last, the background; one set of differences for them all."""

    def __init__(self, config: BoxHeadConfig, channels: int, categories: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels * config.pool**2, config.width)
        self.fc2 = nn.Linear(config.width, config.width)
        self.scores = nn.Linear(config.width, categories + 1)
        self.deltas = nn.Linear(config.width, 4)

    def forward(self, features: Float[Tensor, "R C s s"]) -> tuple[Float[Tensor, "R K"], Float[Tensor, "R 4"]]:
        """Logits and differences of regions, in float32."""
        hidden = self.fc2(self.fc1(features.flatten(1)).relu()).relu()
        return self.scores(hidden).float(), self.deltas(hidden).float()


class BoxCascade(nn.Module):
    """Stages that each begin with the boxes of the one before; with one stage, the head of Fast R-CNN.

    Args:
        config: Of each stage alike.
        stages: What differs between them.
        channels: Of the feature maps.
        categories: How many, the background not counted.
        weigh: Weight of the classification of each prediction, from the boxes predicted and the objects; none: 1.

    Reference:
        Cai and Vasconcelos, CVPR 2018, section 4. The gradient that the features receive is divided by the stages, as
        in the published implementations. Deviates for several categories: boxes are regressed for all of them alike.
    """

    def __init__(
        self,
        config: BoxHeadConfig,
        stages: Sequence[StageConfig],
        channels: int,
        categories: int,
        weigh: Weigh | None = None,
    ) -> None:
        super().__init__()
        self.config, self.settings, self.categories, self.weigh = config, tuple(stages), categories, weigh
        self.stages: Any = nn.ModuleList(BoxStage(config, channels, categories) for _ in stages)

    @torch.no_grad()
    def sample(
        self, proposals: Sequence[Tensor], truths: Sequence[Truth], generator: torch.Generator
    ) -> tuple[list[Float[Tensor, "_ 4"]], list[Matches]]:
        """Draw the regions to train on, from the proposals and the objects' own boxes."""
        drawn, matched = [], []
        for own, truth in zip(proposals, truths, strict=True):
            boxes = torch.cat([own, truth.boxes])
            matches = match(box_iou(truth.boxes, boxes), self.settings[0].iou)
            chosen = torch.cat(sample(matches, self.config.samples, self.config.positive_fraction, generator))
            drawn.append(boxes[chosen])
            matched.append(matches.take(chosen))
        return drawn, matched

    def losses(
        self,
        maps: Sequence[Float[Tensor, "B C _ _"]],
        boxes: list[Float[Tensor, "_ 4"]],
        matched: list[Matches],
        truths: Sequence[Truth],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Losses of every stage.

        Args:
            maps: The pyramid from P2 on.
            boxes: That :meth:`sample` drew.
            matched: The same of their matches.
            truths: The objects.
            sizes: Of the images within the batch.
        """
        losses = {}
        for number, (stage, setting) in enumerate(zip(self.stages, self.settings, strict=True)):
            if number:
                matched = [match(box_iou(t.boxes, own), setting.iou) for t, own in zip(truths, boxes, strict=True)]
            features = _scale_gradient(pool(maps, boxes, self.config.pool), 1 / len(self.stages))
            logits, deltas = stage(features)
            with torch.no_grad():
                predicted = self._move(deltas, boxes, setting, sizes)
            suffix = f"_{number + 1}" if len(self.stages) > 1 else ""
            classification, distance = self._stage_losses(logits, deltas, boxes, predicted, matched, truths, setting)
            losses |= {f"classification{suffix}": classification, f"box{suffix}": distance}
            boxes = [own[not_empty(own)] for own in predicted]
        return losses

    def _stage_losses(
        self,
        logits: Float[Tensor, "R K"],
        deltas: Float[Tensor, "R 4"],
        boxes: list[Tensor],
        predicted: list[Tensor],
        matched: list[Matches],
        truths: Sequence[Truth],
        setting: StageConfig,
    ) -> tuple[Tensor, Tensor]:
        labels, weights, kept, targets = [], [], [], []
        for own, guesses, matches, truth in zip(boxes, predicted, matched, truths, strict=True):
            positive = matches.positive
            stands_for = matches.index[positive]
            own_labels = torch.full_like(matches.index, self.categories)
            own_labels[positive] = truth.labels[stands_for]
            labels.append(own_labels)
            weights.append(soft_targets(matches, truth.weights))
            kept.append(torch.ones_like(weights[-1]) if self.weigh is None else self.weigh(guesses, truth.boxes))
            targets.append(encode(truth.boxes[stands_for], own[positive], setting.weights))
        positive, weight = torch.cat([matches.positive for matches in matched]), torch.cat(weights)
        classification = classification_loss(logits, torch.cat(labels), weight * torch.cat(kept))
        return classification, box_loss(deltas[positive], torch.cat(targets), weight[positive], len(logits))

    def detect(
        self,
        maps: Sequence[Float[Tensor, "B C _ _"]],
        boxes: list[Float[Tensor, "_ 4"]],
        sizes: Sequence[tuple[int, int]],
    ) -> tuple[list[Float[Tensor, "_ 4"]], list[Float[Tensor, "_ K"]]]:
        """Boxes of the last stage and, the mean over all stages, their score in each category."""
        total = torch.zeros((), device=maps[0].device)
        for stage, setting in zip(self.stages, self.settings, strict=True):
            logits, deltas = stage(pool(maps, boxes, self.config.pool))
            total = total + logits.softmax(1)[:, :-1]
            boxes = self._move(deltas, boxes, setting, sizes)
        return boxes, list((total / len(self.stages)).split([len(own) for own in boxes]))

    def _move(
        self, deltas: Tensor, boxes: list[Tensor], setting: StageConfig, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        moved = decode(deltas, torch.cat(boxes), setting.weights).split([len(own) for own in boxes])
        return [clip(own, size) for own, size in zip(moved, sizes, strict=True)]


def _scale_gradient(x: Tensor, scale: float) -> Tensor:
    """The same values, with a share of the gradient."""
    return x if scale == 1 else x * scale + x.detach() * (1 - scale)
