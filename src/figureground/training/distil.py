"""Distillation: a small network learns to see in one look what masks found without learning say of many photographs.

The masks are wrong in ways that differ from picture to picture; what they agree on is what is learned. So the pupil is
better than its teacher: the effect that FOUND (Siméoni et al., CVPR 2023) and CutLER (Wang et al., CVPR 2023) build on,
here with the backbone learned too.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from figureground.backbones.own import Shape, Stem
from figureground.config import Config
from figureground.errors import ConfigError
from figureground.training.dino import choose_attention, seeded
from figureground.training.ema import Ema
from figureground.training.schedules import cosine


class DistilConfig(Config):
    """The network, and how it learns; no paper: all by measurement (``docs/log.md``)."""

    patch_size: int = Field(default=8, ge=2, le=64, description="Side of a patch, px.")
    image_size: int = Field(default=128, ge=8, le=1024, description="Side in px of images that positions are for.")
    width: int = Field(default=192, ge=8, description="Length of a feature.")
    depth: int = Field(default=8, ge=1, description="Blocks.")
    heads: int = Field(default=3, ge=1, description="Attention heads, which divide the width.")
    stem: Stem = Field(
        default="conv", description="`conv`: a few convolutions make the patches, which learns sooner; or `patch`."
    )
    rate: float = Field(default=1e-3, gt=0, description="Learning rate of AdamW; 0 in the end, by a cosine.")
    warmup_steps: int = Field(default=200, ge=0, description="In which the rate rises from 0.")
    weight_decay: float = Field(default=0.05, ge=0, description="Of AdamW; not of biases.")
    average: float = Field(default=0.999, ge=0, lt=1, description="Momentum of the weights' average, which is kept.")
    max_norm: float = Field(default=1.0, gt=0, description="Of the gradient.")
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="Of the images' RGB, in [0, 1]."
    )
    std: tuple[float, float, float] = Field(default=(0.229, 0.224, 0.225), description="Of the same.")
    precision: Literal["bf16", "fp32"] = Field(
        default="bf16", description="Of the products in the network; the loss is fp32."
    )

    @property
    def shape(self) -> Shape:
        """Of the backbone."""
        return Shape(
            patch_size=self.patch_size,
            image_size=self.image_size,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            stem=self.stem,
        )

    def schedule(self, steps: int) -> Callable[[int], float]:
        """From a step to the share of the highest rate."""
        return cosine(1, 0, steps, min(self.warmup_steps, steps // 2))


class Pupil(nn.Module):
    """A backbone and one linear layer on its patches.

    Args:
        config: Of the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DistilConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        try:
            self.backbone: Any = config.shape.build()
        except ValueError as error:
            raise ConfigError(f"The network cannot be built as `distil.*` says: {error}.") from None
        self.head = nn.Linear(config.width, 1)
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w"]:
        """A logit per patch: above 0 it is figure."""
        h, w = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        tokens = self.backbone.forward_features((images - self.mean) / self.std)[:, 1:]
        return self.head(tokens)[..., 0].unflatten(1, (h, w))


class Distil(nn.Module):
    """The pupil and the average of its weights: all that training changes.

    Args:
        config: Of the method.
        generator: Of the first weights.
    """

    def __init__(self, config: DistilConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        with seeded(generator):
            self.pupil = Pupil(config)
        self.average: Any = Ema(self.pupil)
        self._share = 0.0

    def use(self, device: torch.device) -> "Distil":
        """Move to a device, and attend in the way that is fastest there."""
        for network in (self.pupil, self.average.module):
            choose_attention(network.backbone, device, self.config.precision)
        return self.to(device)

    def losses(self, images: Float[Tensor, "B 3 s s"], figure: Float[Tensor, "B 1 s s"]) -> dict[str, Tensor]:
        """Binary cross-entropy of each patch to the share of it that is figure.

        Args:
            images: RGB in [0, 1].
            figure: What the masks say of each pixel, in [0, 1].
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.pupil(images)
        logits = logits.float()
        target = functional.adaptive_avg_pool2d(figure, logits.shape[1:])[:, 0]
        self._share = logits.detach().sigmoid().mean()
        return {"figure": functional.binary_cross_entropy_with_logits(logits, target)}

    def after_update(self, step: int) -> None:
        """Move the average; slower as it has more to average, so that the first weights are forgotten."""
        self.average.update(min(self.config.average, (1 + step) / (10 + step)))

    def measure(self, step: int) -> dict[str, float]:
        """Mean probability of figure over the patches of the last step."""
        return {"foreground": float(self._share)}
