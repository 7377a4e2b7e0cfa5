"""What every detector is: images in, losses or instances out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from figureground.detectors.targets import Target, Truth, check_targets
from figureground.structures import Instances

# ImageNet's, of RGB in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Sides of a batch are multiples of this: the stride of the coarsest map that is computed from the images.
_STRIDE = 32


class Detector(nn.Module, ABC):
    """A detector of torchvision's contract: losses in training, instances otherwise.

    Its constructor takes the configuration and the generator of the first weights (none: seed 0).

    Attributes:
        PRESETS: Named configurations; ``default`` always exists.
        config: In force.
        backbone: From normalised images to maps; its core, which others may have trained, is ``trunk``.
    """

    PRESETS: ClassVar[Mapping[str, Any]]
    backbone: Any

    def __init__(self, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        images: list[Float[Tensor, "3 _ _"]],
        targets: list[Target] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses in training mode, instances in evaluation mode.

        Args:
            images: RGB in [0, 1], of any sizes.
            targets: The objects of each image; in training only.
            generator: Of what is drawn to learn from; none: of seed 0 in every call.

        Returns:
            Losses to be summed; or what :meth:`detect` returns.

        Raises:
            ValueError: If a target does not fit its image.
        """
        if not self.training:
            return self.detect(images)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        truths = check_targets(targets, sizes, self.config.categories)
        return self.losses(images, truths, generator or torch.Generator().manual_seed(0))

    @property
    def categories(self) -> dict[int, str]:
        """Names of what it tells apart, by their id in COCO files, in the order of its labels."""
        count = self.config.categories
        return self.config.names or ({1: "object"} if count == 1 else {n: str(n) for n in range(1, count + 1)})

    @abstractmethod
    def losses(
        self, images: list[Float[Tensor, "3 _ _"]], truths: list[Truth], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses to be summed, of targets that fit; see :meth:`forward`."""

    @abstractmethod
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
            Instances at the size of the image, surest first.
        """


def batch(images: Sequence[Shaped[Tensor, "_ _ _"]]) -> Float[Tensor, "B 3 H W"]:
    """Images normalised and padded with zeros, right and bottom, to one size of whole strides.

    Raises:
        ValueError: If an image has not three channels of floats, or there is none.
    """
    if not images:
        raise ValueError("There are no images.")
    for image in images:
        if not image.is_floating_point() or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"Images are floats in [0, 1] of shape (3, H, W), got {image.dtype} {tuple(image.shape)}.")
    height, width = (-(-max(image.shape[axis] for image in images) // _STRIDE) * _STRIDE for axis in (1, 2))
    batched = images[0].new_zeros(len(images), 3, height, width)
    mean, std = (batched.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    for place, image in zip(batched, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = (image - mean) / std
    return batched


def resize(image: Float[Tensor, "3 H W"], short_side: int | None, long_side: int) -> Float[Tensor, "3 h w"]:
    """Resize so that the short side is ``short_side``, or less where the long one would be more than ``long_side``."""
    height, width = image.shape[1:]
    if short_side is None:
        return image
    scale = min(short_side / min(height, width), long_side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if size == (height, width):
        return image
    return functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
