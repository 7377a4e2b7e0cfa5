"""The three frozen dataclasses that cross the borders between modules, validated once."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image on disk.

    Attributes:
        id: Unique and positive within a run; the COCO image id.
        path: Where to read it.
        height: Pixels, after the EXIF orientation.
        width: Pixels, after the EXIF orientation.
    """

    id: int
    path: str
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.id < 1 or self.height < 1 or self.width < 1:
            raise ValueError(f"An image needs a positive id, height and width, got {self}.")


@dataclass(frozen=True, slots=True, eq=False)
class PatchFeatures:
    """One feature vector per patch of each image of a batch.

    Attributes:
        values: Floating point; the patches of row ``i`` and column ``j`` cover the pixels
            ``[i * patch_size, (i + 1) * patch_size)`` by ``[j * patch_size, (j + 1) * patch_size)``.
        patch_size: Side of a patch, in pixels.
        image_size: ``(height, width)`` of the images, in pixels; at most one patch larger or smaller than the map.
        cls_attention: Attention of the CLS token to each patch in the last block, one row per head
            (``N = h * w``); ``None`` where the backbone has no such token.

    Raises:
        ValueError: If a dimension is empty, sizes disagree, or a value is not finite.
    """

    values: Float[Tensor, "B h w D"]
    patch_size: int
    image_size: tuple[int, int]
    cls_attention: Float[Tensor, "B heads N"] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or not self.values.is_floating_point() or 0 in self.values.shape:
            raise ValueError(f"Patch features are floats of shape (B, h, w, D), got {tuple(self.values.shape)}.")
        if self.patch_size < 1 or min(self.image_size) < 1:
            raise ValueError(f"Sizes are positive, got patch {self.patch_size} and image {self.image_size}.")
        batch, h, w, _ = self.values.shape
        for patches, pixels in zip((h, w), self.image_size, strict=True):
            if abs(patches * self.patch_size - pixels) >= self.patch_size:
                raise ValueError(
                    f"A map of {h}x{w} patches of {self.patch_size} px does not fit an image of {self.image_size} px."
                )
        if not torch.isfinite(self.values).all():
            raise ValueError("Patch features hold NaN or infinite values: the image or the weights are damaged.")
        attention = self.cls_attention
        if attention is not None and (attention.shape[0], attention.shape[-1]) != (batch, h * w):
            raise ValueError(f"CLS attention of shape {tuple(attention.shape)} does not fit {batch} maps of {h}x{w}.")


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The objects found in one image, surest first.

    Attributes:
        masks: One mask per instance.
        boxes: xyxy, in the pixels (or patches) of ``masks``, half-open.
        scores: In [0, 1], higher is surer.
        labels: Category ids; 1 is ``object``.

    Raises:
        ValueError: If the lengths differ, a score leaves [0, 1], or a box is empty.
    """

    masks: Bool[Tensor, "M H W"]
    boxes: Float[Tensor, "M 4"]
    scores: Float[Tensor, "M"]
    labels: Int[Tensor, "M"]

    def __post_init__(self) -> None:
        count = self.masks.shape[0]
        if self.masks.ndim != 3 or self.masks.dtype != torch.bool:
            raise ValueError(f"Masks are booleans of shape (M, H, W), got {self.masks.dtype} {self.masks.shape}.")
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,) or self.labels.shape != (count,):
            raise ValueError(
                f"{count} masks need as many boxes, scores and labels, got shapes {tuple(self.boxes.shape)}, "
                f"{tuple(self.scores.shape)}, {tuple(self.labels.shape)}."
            )
        # Written so that NaN fails as well.
        if not bool(((self.scores >= 0) & (self.scores <= 1)).all()):
            raise ValueError("Scores must lie in [0, 1].")
        if not bool((self.boxes[:, 2:] > self.boxes[:, :2]).all()):
            raise ValueError("Boxes are xyxy with x1 < x2 and y1 < y2.")

    def __len__(self) -> int:
        return self.masks.shape[0]
