"""MaskContrast's network: an embedding and a saliency for each pixel."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from figureground.config import Config

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SegmenterConfig(Config):
    """How the network is built."""

    arch: Literal["resnet50", "resnet101"] = Field(
        default="resnet50", description="Trunk, of torchvision, dilated to stride 8 (MaskContrast: resnet50)."
    )
    rates: tuple[int, ...] = Field(
        default=(12, 24, 36), min_length=1, description="Dilations of DeepLab's head (MaskContrast: 12, 24, 36)."
    )
    width: int = Field(default=32, ge=2, description="Length of an embedding (MaskContrast: 32).")


class Segmenter(nn.Module):
    """A dilated ResNet under DeepLab's head, with a linear layer for the embedding and one for the saliency.

    Args:
        config: How it is built. It begins with random weights.

    Attributes:
        trunk: The ResNet, in torchvision's names, without its classifier.
        head: DeepLab's, up to 256 channels.
        embedding: Linear.
        saliency: Linear, without bias.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 4.1 and the published code; Chen et al., Rethinking atrous convolution,
        2017. The images are normalised here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        trunk: Any = get_model(config.arch, weights=None, replace_stride_with_dilation=[False, True, True])
        channels = trunk.fc.in_features
        del trunk.fc, trunk.avgpool
        self.trunk = trunk
        # Without the last layer, in the place of which there are two.
        self.head = nn.Sequential(*list(DeepLabHead(channels, 1, config.rates))[:-1])
        self.embedding = nn.Conv2d(256, config.width, 1)
        self.saliency = nn.Conv2d(256, 1, 1, bias=False)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B D H W"], Float[Tensor, "B H W"]]:
        """Look at images; while it learns, at two or more.

        Args:
            images: RGB in [0, 1].

        Returns:
            Embeddings, not normalised, and logits of saliency, both brought to the size of the images.
        """
        trunk = self.trunk
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1((images - self.mean) / self.std))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(trunk, name)(x)
        features = self.head(x)
        size = images.shape[2:]
        embedding, saliency = (
            functional.interpolate(layer(features), size=size, mode="bilinear")
            for layer in (self.embedding, self.saliency)
        )
        return embedding, saliency[:, 0]
