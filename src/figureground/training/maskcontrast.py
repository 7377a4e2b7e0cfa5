"""MaskContrast: pixels of one object are alike and unlike those of other objects, from masks without classes."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from figureground.config import Config
from figureground.segmenters.losses import PrototypeQueue, contrastive_loss, prototypes_of, saliency_loss
from figureground.segmenters.maskcontrast import Segmenter, SegmenterConfig
from figureground.training.dino import seeded
from figureground.training.distributed import gather, world
from figureground.training.ema import Ema


class MaskContrastConfig(Config):
    """What is learned, and how."""

    segmenter: SegmenterConfig = SegmenterConfig()
    queue: int = Field(default=128, ge=1, description="Prototypes held (paper: 128 at a batch of 64, 256 at 128).")
    temperature: float = Field(default=0.5, gt=0, description="Of the softmax over prototypes (paper: 0.5).")
    momentum: float = Field(default=0.999, ge=0, le=1, description="Of the key encoder, a step (paper: 0.999).")


class MaskContrast(nn.Module):
    """Query encoder, key encoder and queue: all that training changes.

    Args:
        config: Of the method.
        generator: Of the first weights and prototypes.

    Attributes:
        query: What is trained, and kept in the end.
        key: Its moving average.
        queue: Prototypes of earlier batches.

    Reference:
        Van Gansbeke et al., Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals, ICCV 2021, section
        3. Deviates: a batch is that of all processes.
    """

    key: Any  # an Ema of the query

    def __init__(self, config: MaskContrastConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        with seeded(generator):
            self.query = Segmenter(config.segmenter)
        self.key = Ema(self.query)
        self.queue = PrototypeQueue(config.queue, config.segmenter.width, generator)
        # Of the last step, for the queue.
        self._keys: Tensor | None = None

    def losses(
        self,
        queries: Float[Tensor, "B 3 H W"],
        query_masks: Bool[Tensor, "B H W"],
        keys: Float[Tensor, "B 3 H W"],
        key_masks: Bool[Tensor, "B H W"],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The losses of a batch, which weigh the same.

        Args:
            queries: One view of each image, RGB in [0, 1]; two images or more.
            query_masks: The object in it.
            keys: Another view of each.
            key_masks: The object in that.
            generator: Of dropout.
        """
        with seeded(generator, queries.device):
            embedding, saliency = self.query(queries)
            prototypes = prototypes_of(self.key(keys)[0], key_masks)
        self._keys = gather(prototypes)
        contrast = contrastive_loss(
            embedding,
            query_masks,
            self._keys,
            self.queue.prototypes,
            self.config.temperature,
            gather,
            world().rank,
        )
        return {"contrast": contrast, "saliency": saliency_loss(saliency, query_masks, gather)}

    def update(self) -> None:
        """After a step of the optimiser: move the key encoder, and let the keys of the step into the queue."""
        self.key.update(self.config.momentum)
        if self._keys is not None:
            self.queue.add(self._keys)
            self._keys = None
