"""One vector for each instance of an image: what a backbone sees inside its mask."""

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from figureground.data.resize import fit_size, resize_image, to_tensor
from figureground.errors import ImageError
from figureground.ops.masks import masks_to_boxes
from figureground.ops.rle import RLE
from figureground.ops.rle import decode as decode_masks

View = Literal["crop", "image"]
# Crops that the backbone looks at together.
_BATCH = 16


class InstanceEmbedder:
    """Describes instances by the mean of the patch features inside their masks, at unit length.

    Args:
        backbone: As :func:`figureground.backbones.load` gives it.
        view: What the backbone looks at: the ``crop`` of each instance, the extent of its mask brought to a square; or
            the whole ``image``, once for all of them.
        size: Side of the square, or of the one whose area the image is brought to, in pixels.
        device: Where the backbone is.

    Attributes:
        seconds: Spent in ``features``.

    Reference:
        The mean over the mask of a crop: as Siméoni et al., LOST, BMVC 2021, section 4.3, and Niu et al., U2Seg, CVPR
        2024, section 3.2, who cluster CLS tokens of crops. Deviates: a mean of patches knows the mask, and every
        backbone has it.
    """

    def __init__(self, backbone: Any, view: View, size: int, device: str) -> None:
        self.backbone, self.view, self.size, self.device = backbone, view, size, device
        self.seconds: dict[str, float] = {}

    def embed(self, pixels: UInt8[np.ndarray, "H W 3"], masks: Sequence[RLE]) -> Float[np.ndarray, "M D"]:
        """Describe the instances of an image.

        Args:
            pixels: The image.
            masks: Of its size, none empty.

        Raises:
            ImageError: If the backbone finds no features in it.
        """
        look = self._crops if self.view == "crop" else self._whole
        with self._timed("features"):
            try:
                return torch.stack(list(look(pixels, masks))).cpu().numpy()
            except ValueError as error:
                raise ImageError(f"No features could be made of the image: {error}") from error

    def _crops(self, pixels: UInt8[np.ndarray, "H W 3"], masks: Sequence[RLE]) -> Iterator[Float[Tensor, "D"]]:
        side = fit_size((1, 1), self.size, self.backbone.patch_size)
        for first in range(0, len(masks), _BATCH):
            crops, inside = [], []
            for rle in masks[first : first + _BATCH]:
                mask = decode_masks([rle])
                x1, y1, x2, y2 = masks_to_boxes(mask)[0].int().tolist()
                crop = resize_image(np.ascontiguousarray(pixels[y1:y2, x1:x2]), side)
                crops.append(to_tensor(crop, self.device))
                inside.append(mask[0, y1:y2, x1:x2])
            features = self.backbone(torch.cat(crops))
            yield from map(_mean_inside, features.values, inside)

    def _whole(self, pixels: UInt8[np.ndarray, "H W 3"], masks: Sequence[RLE]) -> Iterator[Float[Tensor, "D"]]:
        size = fit_size(pixels.shape[:2], self.size, self.backbone.patch_size)
        [values] = self.backbone(to_tensor(resize_image(pixels, size), self.device)).values
        return (_mean_inside(values, decode_masks([rle])[0]) for rle in masks)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def _mean_inside(values: Float[Tensor, "h w D"], mask: Bool[Tensor, "H W"]) -> Float[Tensor, "D"]:
    """Each patch counts with the share of it that the mask covers, so that no mask is too small."""
    h, w = values.shape[:2]
    covered = functional.adaptive_avg_pool2d(mask[None].float(), (h, w))[0].to(values.device)
    return functional.normalize((covered[..., None] * values.float()).sum((0, 1)), dim=0)


def pack(vectors: Float[np.ndarray, "M D"]) -> str:
    """Vectors of unit length as text, in half precision: a thousandth of an angle is no difference in kind."""
    return base64.b64encode(vectors.astype("<f2").tobytes()).decode("ascii")


def unpack(text: str, count: int) -> Float[np.ndarray, "M D"]:
    """What :func:`pack` was given."""
    flat = np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float32)
    return flat.reshape(count, -1)
