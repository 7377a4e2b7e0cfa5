"""What all region-based detectors share: images in, losses or instances out."""

import functools
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import batched_nms

from figureground.config import Config
from figureground.detectors.box_head import BoxCascade, BoxHeadConfig, StageConfig
from figureground.detectors.boxes import clip, not_empty
from figureground.detectors.initialise import initialise
from figureground.detectors.interface import Detector, batch, resize
from figureground.detectors.losses import drop_loss
from figureground.detectors.mask_head import MaskHead, MaskHeadConfig, paste
from figureground.detectors.rpn import RPN, RPNConfig
from figureground.detectors.targets import Truth
from figureground.structures import Instances


class RCNNConfig(Config):
    """What all region-based detectors share; the defaults are those of CutLER's first round."""

    categories: int = Field(default=1, ge=1, description="How many kinds of objects; 1: `object` (CutLER: 1).")
    names: dict[int, str] | None = Field(
        default=None,
        description="Of the categories, by their id in COCO files; `train` fills them in; none: `object`, or numbers.",
    )
    rpn: RPNConfig = RPNConfig()
    stages: tuple[StageConfig, ...] = Field(
        default=(StageConfig(),), min_length=1, description="Of the box head: one, or those of a cascade."
    )
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig = MaskHeadConfig()
    drop_loss: float | None = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="Training leaves out the classification of boxes that overlap objects by no more; none: of none "
        "(CutLER: 0.01, in self-training none).",
    )
    score_threshold: float = Field(default=0.0, ge=0, lt=1, description="Instances score above this (CutLER: 0).")
    nms: float = Field(
        default=0.5, gt=0, le=1, description="Of two instances that overlap by more the surer is kept (CutLER: 0.5)."
    )
    max_detections: int = Field(
        default=100, ge=1, description="Instances an image (CutLER: 100; before self-training 30; on LVIS 300)."
    )
    short_side: int | None = Field(
        default=800,
        ge=32,
        description="Images are looked at with their short side at this many px, not in training; none: as they are "
        "(CutLER: 800).",
    )
    long_side: int = Field(default=1333, ge=32, description="But their long side at no more px (CutLER: 1333).")


class RCNN(Detector):
    """A detector that looks at regions: Mask R-CNN is the cascade of one stage, so there is one model.

    Subclasses say what it looks with.
    """

    def __init__(self, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        weigh = None if config.drop_loss is None else functools.partial(drop_loss, threshold=config.drop_loss)
        # Shapes only: values come from the generator, and the global one is not drawn from.
        with torch.device("meta"):
            self.backbone: Any = self.make_backbone()
            channels = self.backbone.channels
            self.rpn = RPN(config.rpn, channels)
            self.boxes = BoxCascade(config.box_head, config.stages, channels, config.categories, weigh)
            self.masks = MaskHead(config.mask_head, channels, config.categories)
        initialise(self, generator)

    @abstractmethod
    def make_backbone(self) -> nn.Module:
        """A module from normalised images to maps of strides 4 to 64, all of ``channels``; its core is ``trunk``."""

    def losses(
        self, images: list[Float[Tensor, "3 _ _"]], truths: list[Truth], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See :class:`figureground.detectors.interface.Detector`; anchors and regions are drawn."""
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        maps = self.backbone(batch(images))
        proposals, losses = self.rpn(maps, sizes, truths, generator)
        boxes, matched = self.boxes.sample(proposals, truths, generator)
        losses |= self.boxes.losses(maps, boxes, matched, truths, sizes)
        return losses | self.masks.losses(maps, boxes, matched, truths)

    @torch.no_grad()
    def detect(
        self,
        images: list[Float[Tensor, "3 _ _"]],
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> list[Instances]:
        """Find the objects of each image.

        Args:
            images: RGB in [0, 1], of any sizes.
            score_threshold: Instead of the configured one.
            max_detections: Instead of the configured one.

        Returns:
            Instances at the size of the image, surest first; the boxes are predicted, not those of the masks.
        """
        config = self.config
        threshold = config.score_threshold if score_threshold is None else score_threshold
        resized = [resize(image, config.short_side, config.long_side) for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in resized]
        maps = self.backbone(batch(resized))
        boxes, scores = self.boxes.detect(maps, self.rpn(maps, sizes)[0], sizes)
        chosen = [
            select(*own, threshold, config.nms, max_detections or config.max_detections)
            for own in zip(boxes, scores, strict=True)
        ]
        boxes = [own for own, _, _ in chosen]
        logits = self.masks(maps, boxes, torch.cat([labels for _, _, labels in chosen]))
        found = []
        for image, size, own, probabilities in zip(
            images, sizes, chosen, logits.sigmoid().split([len(own) for own in boxes]), strict=True
        ):
            found.append(_instances(own, probabilities, size, (image.shape[1], image.shape[2])))
        return found


def select(
    boxes: Float[Tensor, "R 4"], scores: Float[Tensor, "R K"], threshold: float, nms: float, most: int
) -> tuple[Float[Tensor, "M 4"], Float[Tensor, "M"], Int[Tensor, "M"]]:
    """The best of one image: boxes, scores and categories from 0, surest first.

    Args:
        boxes: Predicted.
        scores: Of each in each category.
        threshold: Scores are above this.
        nms: Of two of a category that overlap by more the surer is kept.
        most: How many are kept at most.
    """
    candidates, labels = torch.nonzero((scores > threshold) & not_empty(boxes)[:, None], as_tuple=True)
    boxes, scores = boxes[candidates], scores[candidates, labels]
    kept = batched_nms(boxes, scores, labels, nms)[:most]
    return boxes[kept], scores[kept], labels[kept]


def _instances(
    found: tuple[Tensor, Tensor, Tensor], probabilities: Tensor, seen: tuple[int, int], size: tuple[int, int]
) -> Instances:
    """Bring what was found in an image of size ``seen`` to the image's own size."""
    boxes, scores, labels = found
    scale = boxes.new_tensor([size[1] / seen[1], size[0] / seen[0]]).tile(2)
    boxes = clip(boxes * scale, size)
    # A box of a fraction of a pixel at the border may have become empty by rounding.
    kept = not_empty(boxes)
    boxes, probabilities = boxes[kept], probabilities[kept]
    return Instances(paste(probabilities, boxes, size), boxes, scores[kept].clamp(max=1), labels[kept] + 1)
