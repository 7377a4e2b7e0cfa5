"""A ResNet with a feature pyramid: what Mask R-CNN and its cascade look with."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from figureground.config import Config

Norm = Literal["sync", "batch", "frozen", "group"]


class ResNetConfig(Config):
    """Which ResNet, and how its pyramid is built."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = Field(
        default="resnet50", description="Of torchvision (CutLER: resnet50)."
    )
    norm: Norm = Field(
        default="sync",
        description="In trunk and pyramid: batch norm over all processes (CutLER: sync) or over each; the trunk's own "
        "statistics, frozen, and none in the pyramid; or group norm, which needs no large batch.",
    )
    channels: int = Field(default=256, ge=8, description="Of each level of the pyramid (paper: 256).")


class ResNetPyramid(nn.Module):
    """Feature maps of strides 4, 8, 16, 32 and 64.

    Reference:
        He et al., CVPR 2016, the stride in the 3x3 convolution; Lin et al., FPN, CVPR 2017, with a norm after each of
        the pyramid's convolutions, as CutLER has it.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        norm = _NORMS[config.norm]
        trunk: Any = get_model(config.arch, weights=None, norm_layer=norm)
        widest = trunk.fc.in_features
        del trunk.fc, trunk.avgpool
        self.trunk = trunk
        self.channels = config.channels
        self.pyramid = FeaturePyramidNetwork(
            [widest // 8, widest // 4, widest // 2, widest],
            config.channels,
            LastLevelMaxPool(),
            norm_layer=None if config.norm == "frozen" else norm,
        )

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C _ _"]]:
        """The five maps of normalised images whose sides are multiples of 32 px."""
        trunk = self.trunk
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        maps = OrderedDict()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            maps[name] = x = getattr(trunk, name)(x)
        return list(self.pyramid(maps).values())


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm over all processes; on a CPU, where torch has none, over each of its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(input) if input.is_cuda else _BatchNorm.forward(self, input)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics and factors it was given, in training too."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        """Stay in evaluation mode."""
        return super().train(False)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "sync": SyncBatchNorm,
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm,
    "group": _group_norm,
}
