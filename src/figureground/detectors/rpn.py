"""The region proposal network: where in an image something may be.

Ren, He, Girshick, Sun: Faster R-CNN: towards real-time object detection with region proposal networks. NeurIPS 2015.
Written from the paper, with the constants of CutLER's released configurations.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms, box_iou

from figureground.config import Config
from figureground.detectors.anchors import anchors
from figureground.detectors.boxes import clip, decode, encode, not_empty
from figureground.detectors.matching import match, sample
from figureground.detectors.pooling import STRIDES
from figureground.detectors.targets import Truth


class RPNConfig(Config):
    """How regions are proposed; the defaults are those of CutLER's first round."""

    sizes: tuple[float, float, float, float, float] = Field(
        default=(32, 64, 128, 256, 512), description="Side in px of the anchors of each level (paper: 32 to 512)."
    )
    ratios: tuple[float, ...] = Field(
        default=(0.5, 1, 2), min_length=1, description="Height over width of the anchors (paper: 0.5, 1, 2)."
    )
    positive_iou: float = Field(default=0.7, gt=0, le=1, description="An object's anchor from this IoU (paper: 0.7).")
    negative_iou: float = Field(default=0.3, gt=0, le=1, description="Background below this IoU (paper: 0.3).")
    samples: int = Field(default=256, ge=1, description="Anchors an image trained on (paper: 256).")
    positive_fraction: float = Field(
        default=0.5, gt=0, le=1, description="At most this share of them stands for objects (paper: 0.5)."
    )
    nms: float = Field(
        default=0.65, gt=0, le=1, description="Of two regions that overlap by more the surer is kept (CutLER: 0.65)."
    )
    level_train: int = Field(default=2000, ge=1, description="Regions of a level before that, training (CutLER: 2000).")
    level_test: int = Field(default=1000, ge=1, description="Regions of a level before that, otherwise (CutLER: 1000).")
    train: int = Field(
        default=4000, ge=1, description="Regions an image, training (CutLER: 4000; self-training: 1000)."
    )
    test: int = Field(default=1000, ge=1, description="Regions an image, otherwise (CutLER: 1000).")


class RPN(nn.Module):
    """Proposes boxes by moving anchors, and learns to.

    Args:
        config: The constants.
        channels: Of the feature maps.
    """

    def __init__(self, config: RPNConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(config.ratios), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(config.ratios), 1)

    def forward(
        self,
        maps: Sequence[Float[Tensor, "B C _ _"]],
        sizes: Sequence[tuple[int, int]],
        truths: Sequence[Truth] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Float[Tensor, "_ 4"]], dict[str, Tensor]]:
        """Propose regions.

        Args:
            maps: The pyramid.
            sizes: Of the images within the batch.
            truths: To learn from; none: no losses.
            generator: Draws the anchors that are learned from.

        Returns:
            Boxes of each image, surest first, without gradient; the losses.
        """
        logits, deltas, references = [], [], []
        for features, stride, size in zip(maps, STRIDES, self.config.sizes, strict=True):
            hidden = self.conv(features).relu()
            # (B, ratios, h, w) to (B, A): in the order of the anchors.
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float())
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(features), -1, 4).float())
            map_size = (features.shape[2], features.shape[3])
            references.append(anchors(map_size, stride, size, self.config.ratios, features.device))
        losses = {}
        if truths is not None:
            assert generator is not None
            losses = self._losses(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(references), truths, generator)
        return self._propose(logits, deltas, references, sizes), losses

    @torch.no_grad()
    def _propose(
        self,
        logits: list[Float[Tensor, "B _"]],
        deltas: list[Float[Tensor, "B _ 4"]],
        references: list[Float[Tensor, "_ 4"]],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Float[Tensor, "_ 4"]]:
        config = self.config
        before, after = (config.level_train, config.train) if self.training else (config.level_test, config.test)
        scores, boxes, levels = [], [], []
        for level, (of_level, moves, places) in enumerate(zip(logits, deltas, references, strict=True)):
            best, chosen = of_level.topk(min(before, of_level.shape[1]))
            moves = moves.gather(1, chosen[:, :, None].expand(-1, -1, 4))
            scores.append(best)
            boxes.append(decode(moves, places[chosen]))
            levels.append(torch.full_like(chosen[0], level))
        level_of = torch.cat(levels)
        proposals = []
        for own_scores, own_boxes, size in zip(torch.cat(scores, 1), torch.cat(boxes, 1), sizes, strict=True):
            own_boxes = clip(own_boxes, size)
            usable = not_empty(own_boxes)
            own_boxes, own_scores, own_levels = own_boxes[usable], own_scores[usable], level_of[usable]
            proposals.append(own_boxes[batched_nms(own_boxes, own_scores, own_levels, config.nms)[:after]])
        return proposals

    def _losses(
        self,
        logits: Float[Tensor, "B A"],
        deltas: Float[Tensor, "B A 4"],
        references: Float[Tensor, "A 4"],
        truths: Sequence[Truth],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Cross-entropy of drawn anchors, L1 of those that stand for objects; both over the count that is drawn."""
        config = self.config
        objectness, distance = logits.new_zeros(()), logits.new_zeros(())
        for own_logits, own_deltas, truth in zip(logits, deltas, truths, strict=True):
            matches = match(box_iou(truth.boxes, references), config.positive_iou, config.negative_iou, rescue=True)
            positive, negative = sample(matches, config.samples, config.positive_fraction, generator)
            drawn = own_logits[torch.cat([positive, negative])]
            expected = torch.cat([torch.ones_like(drawn[: len(positive)]), torch.zeros_like(drawn[len(positive) :])])
            objectness = objectness + functional.binary_cross_entropy_with_logits(drawn, expected, reduction="sum")
            targets = encode(truth.boxes[matches.index[positive]], references[positive])
            distance = distance + (own_deltas[positive] - targets).abs().sum()
        count = config.samples * len(truths)
        return {"objectness": objectness / count, "proposal_box": distance / count}
