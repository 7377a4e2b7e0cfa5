"""MaskContrast: pixels of one object are alike and unlike those of other objects, from masks without classes."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from figureground.config import Config
from figureground.errors import ConfigError
from figureground.segmenters.losses import PrototypeQueue, contrastive_loss, prototypes_of, saliency_loss
from figureground.segmenters.maskcontrast import Segmenter, SegmenterConfig
from figureground.training.dino import choose_attention, seeded
from figureground.training.distributed import gather, world
from figureground.training.ema import Ema


class MaskContrastConfig(Config):
    """What is learned, and how."""

    segmenter: SegmenterConfig = SegmenterConfig()
    queue: int = Field(default=128, ge=1, description="Prototypes held (paper: 128 at a batch of 64, 256 at 128).")
    temperature: float = Field(default=0.5, gt=0, description="Of the softmax over prototypes (paper: 0.5).")
    momentum: float = Field(default=0.999, ge=0, le=1, description="Of the key encoder, a step (paper: 0.999).")
    freeze: int = Field(
        default=0,
        ge=0,
        description="Stages of the trunk, from the image on, that stay as they begin, statistics included: a ResNet "
        "has a stem and four, a transformer its embedding and blocks (paper: 0 without labels, 3 with ImageNet's).",
    )
    precision: Literal["bf16", "fp32"] = Field(
        default="fp32", description="Of the products in the networks; the losses are fp32 (paper: fp32)."
    )


class MaskContrast(nn.Module):
    """Query encoder, key encoder and queue: all that training changes.

    Args:
        config: Of the method.
        generator: Of the first weights and prototypes.

    Attributes:
        query: What is trained, and kept in the end.
        key: Its moving average.
        queue: Prototypes of earlier batches.

    Raises:
        ConfigError: If the network cannot be built, or has fewer stages than are to be frozen.

    Reference:
        Van Gansbeke et al., Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals, ICCV 2021, section
        3. Deviates: a batch is that of all processes.
    """

    key: Any  # an Ema of the query

    def __init__(self, config: MaskContrastConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        try:
            with seeded(generator):
                self.query = Segmenter(config.segmenter)
        except ValueError as error:
            raise ConfigError(f"The network cannot be built as `segmenter.*` says: {error}.") from None
        stages = self.query.stages()
        if config.freeze > len(stages):
            raise ConfigError(
                f"{config.freeze} stages are to be frozen, but {config.segmenter.arch} has {len(stages)}.",
                "Choose a smaller `freeze`.",
            )
        for part in self._frozen(self.query):
            part.requires_grad_(False)
        self.key = Ema(self.query)
        self.queue = PrototypeQueue(config.queue, config.segmenter.width, generator)
        # Of the last step, for the queue.
        self._keys: Tensor | None = None
        self._share = 0.0
        self.train()

    def use(self, device: torch.device) -> "MaskContrast":
        """Compute there, in the way that is fast there."""
        if self.config.segmenter.arch == "vit":
            for network in (self.query, self.key.module):
                choose_attention(network.trunk, device, self.config.precision)
        return self.to(device)

    def train(self, mode: bool = True) -> "MaskContrast":
        """Learn, but for what is frozen."""
        super().train(mode)
        for network in (self.query, self.key.module):
            for part in self._frozen(network):
                if isinstance(part, nn.Module):
                    part.eval()
        return self

    def begin_with_query(self) -> None:
        """Make the key encoder what the query encoder is, once that has been given first weights."""
        self.key.update(0)

    def losses(
        self,
        queries: Float[Tensor, "B 3 H W"],
        query_masks: Bool[Tensor, "B H W"],
        keys: Float[Tensor, "B 3 H W"],
        key_masks: Bool[Tensor, "B H W"],
        generator: torch.Generator,
        figures: Bool[Tensor, "B H W"] | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch, which weigh the same.

        Args:
            queries: One view of each image, RGB in [0, 1]; two images or more.
            query_masks: The object in it.
            keys: Another view of each.
            key_masks: The object in that.
            generator: Of dropout.
            figures: All objects in the first view, where there may be more than the one: what saliency is learned from.
        """
        with (
            seeded(generator, queries.device),
            torch.autocast(queries.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"),
        ):
            embedding, saliency = self.query(queries)
            key_embedding, _ = self.key(keys)
        embedding, saliency = embedding.float(), saliency.float()
        self._keys = gather(prototypes_of(key_embedding.float(), key_masks))
        contrast = contrastive_loss(
            embedding,
            query_masks,
            self._keys,
            self.queue.prototypes,
            self.config.temperature,
            gather,
            world().rank,
        )
        self._share = (saliency.detach() > 0).float().mean()
        figures = query_masks if figures is None else figures
        return {"contrast": contrast, "saliency": saliency_loss(saliency, figures, gather)}

    def update(self) -> None:
        """After a step of the optimiser: move the key encoder, and let the keys of the step into the queue."""
        self.key.update(self.config.momentum)
        if self._keys is not None:
            self.queue.add(self._keys)
            self._keys = None

    def measure(self, step: int) -> dict[str, float]:
        """Share of the last views that is taken for an object; mean cosine of the queue's prototypes: 1 is collapse."""
        held = self.queue.prototypes
        pairs = max(len(held) * (len(held) - 1), 1)
        alike = (held.sum(0).square().sum() - held.square().sum()) / pairs
        return {"foreground": float(self._share), "alike": float(alike)}

    def _frozen(self, network: Any) -> list[nn.Module | nn.Parameter]:
        return [part for stage in network.stages()[: self.config.freeze] for part in stage]
