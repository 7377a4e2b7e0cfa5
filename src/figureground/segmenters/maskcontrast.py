"""MaskContrast's network: an embedding and a saliency for each pixel."""

from operator import attrgetter
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from figureground.backbones.own import Shape, Stem
from figureground.config import Config

# What the head makes, for the last layers.
CHANNELS = 256


class TransformerConfig(Config):
    """The trunk where it is a vision transformer; the default is ViT-S/16, as DINO's."""

    patch_size: int = Field(default=16, ge=2, le=64, description="Side of a patch, px.")
    image_size: int = Field(default=224, ge=8, le=1024, description="Side of images that positions are for, px.")
    width: int = Field(default=384, ge=8, description="Length of a token.")
    depth: int = Field(default=12, ge=1, description="Blocks.")
    heads: int = Field(default=6, ge=1, description="Of attention, which divide the width.")
    stem: Stem = Field(
        default="patch", description="How patches become tokens: `patch`, one convolution, or `conv`, a few."
    )

    @model_validator(mode="after")
    def _divides(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ValueError(f"A width of {self.width} cannot be shared out to {self.heads} heads.")
        return self


class SegmenterConfig(Config):
    """How the network is built."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "vit"] = Field(
        default="resnet50", description="Trunk: a ResNet of torchvision, or `vit` (MaskContrast: resnet50)."
    )
    stride: Literal[8, 16] = Field(
        default=8, description="Of the map of a ResNet, px; dilation keeps what it sees (MaskContrast: 8)."
    )
    rates: tuple[int, ...] = Field(
        default=(12, 24, 36),
        min_length=1,
        description="Dilations of DeepLab's head, of a ResNet (MaskContrast: 12, 24, 36).",
    )
    vit: TransformerConfig = TransformerConfig()
    width: int = Field(default=32, ge=2, description="Length of an embedding (MaskContrast: 32).")
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="Of the images' RGB, in [0, 1]: as the first weights were trained."
    )
    std: tuple[float, float, float] = Field(default=(0.229, 0.224, 0.225), description="Of the same.")


class Segmenter(nn.Module):
    """A trunk and a head, with a linear layer for the embedding and one for the saliency.

    The trunk is a dilated ResNet under DeepLab's head, or a vision transformer under one convolution of its patches.

    Args:
        config: How it is built. It begins with random weights.

    Attributes:
        config: The same.
        trunk: In torchvision's or timm's names, without its classifier.
        head: On the trunk's last map, up to 256 channels.
        embedding: Linear.
        saliency: Linear, without bias.

    Raises:
        ValueError: If the transformer's sizes do not fit together.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 4.1 and the published code; Chen et al., Rethinking atrous convolution,
        2017. The images are normalised here. The transformer is ours; the paper has none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk: Any
        if config.arch == "vit":
            self.trunk = Shape(**config.vit.model_dump()).build()
            # No batch norm: a transformer has none either, and learns from any number of images.
            self.head = nn.Sequential(
                nn.Conv2d(config.vit.width, CHANNELS, 3, padding=1, bias=False), nn.GroupNorm(32, CHANNELS), nn.ReLU()
            )
        else:
            self.trunk, channels = _dilated_resnet(config.arch, config.stride)
            # Without the last layer, in the place of which there are two.
            self.head = nn.Sequential(*list(DeepLabHead(channels, 1, config.rates))[:-1])
        self.embedding = nn.Conv2d(CHANNELS, config.width, 1)
        self.saliency = nn.Conv2d(CHANNELS, 1, 1, bias=False)
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B D H W"], Float[Tensor, "B H W"]]:
        """Look at images; a ResNet, while it learns, at two or more.

        Args:
            images: RGB in [0, 1].

        Returns:
            Embeddings, not normalised, and logits of saliency, both brought to the size of the images.
        """
        features = self.features(images)
        embedding, saliency = (self.enlarge(layer(features), images) for layer in (self.embedding, self.saliency))
        return embedding, saliency[:, 0]

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 256 h w"]:
        """What the last layers, which are linear, look at."""
        images = (images - self.mean) / self.std
        trunk = self.trunk
        if self.config.arch == "vit":
            patch = self.config.vit.patch_size
            images = functional.pad(images, (0, -images.shape[3] % patch, 0, -images.shape[2] % patch))
            tokens = trunk.forward_features(images)[:, trunk.num_prefix_tokens :]
            size = images.shape[2] // patch, images.shape[3] // patch
            return self.head(tokens.transpose(1, 2).unflatten(2, size))
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(trunk, name)(x)
        return self.head(x)

    def enlarge(self, maps: Float[Tensor, "B C h w"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C H W"]:
        """Bring what was made of :meth:`features` to the size of the images."""
        height, width = images.shape[2:]
        size = height, width
        if self.config.arch == "vit":
            # The last patches reach over the border.
            size = maps.shape[2] * self.config.vit.patch_size, maps.shape[3] * self.config.vit.patch_size
        return functional.interpolate(maps, size=size, mode="bilinear")[:, :, :height, :width]

    def stages(self) -> list[list[nn.Module | nn.Parameter]]:
        """Parts of the trunk from the image on: a ResNet's stem and stages, or a transformer's embedding and blocks."""
        if self.config.arch == "vit":
            names = [("patch_embed", "cls_token", "pos_embed")]
            names += [(f"blocks.{index}",) for index in range(self.config.vit.depth)]
        else:
            names = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
        return [[attrgetter(name)(self.trunk) for name in stage] for stage in names]


def _dilated_resnet(arch: str, stride: int) -> tuple[Any, int]:
    """A ResNet of torchvision without its classifier, its last stages dilated; and the channels of its last map.

    Torchvision dilates none of the small ones. Where a stage does not halve its map, its first convolution of 3x3 keeps
    the dilation before it, the others take twice that; so the weights see what they were trained to see.
    """
    trunk: Any = get_model(arch, weights=None)
    channels = trunk.fc.in_features
    del trunk.fc, trunk.avgpool
    dilations = {"layer3": 2, "layer4": 4} if stride == 8 else {"layer4": 2}
    for name, dilation in dilations.items():
        for layer in getattr(trunk, name).modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            if layer.kernel_size == (3, 3):
                spread = dilation // layer.stride[0]
                layer.dilation = layer.padding = (spread, spread)
            layer.stride = (1, 1)
    return trunk, channels
