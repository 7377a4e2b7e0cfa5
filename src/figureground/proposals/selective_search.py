"""Selective search: boxes around the regions that similar neighbours merge into. Needs OpenCV, and no features.

Uijlings, van de Sande, Gevers, Smeulders: Selective search for object recognition. IJCV 2013. OpenCV's implementation,
as used to train DETReg (Bar et al., CVPR 2022).
"""

import importlib
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.errors import UsageError
from figureground.proposals.interface import Method, to_instances
from figureground.structures import Instances, PatchFeatures


class SelectiveSearchConfig(Config):
    """Where the search looks, and how many of its boxes are kept."""

    mode: Literal["fast", "quality"] = Field(
        default="fast", description="How many colour spaces and scales are searched (DETReg: fast)."
    )
    side: int = Field(default=128, ge=8, le=4096, description="Pixels; the image is brought to a square (DETReg: 128).")
    max_boxes: int = Field(default=30, ge=1, description="Boxes kept, highest rank first (DETReg: 30).")
    seed: int = Field(default=0, ge=0, description="Of the random part of the ranks.")


class SelectiveSearch(Method):
    """The boxes of highest rank, as filled masks; the score falls from 1 with the rank.

    Reference:
        Uijlings et al., IJCV 2013, sections 3 and 4.1; Bar et al., DETReg, CVPR 2022, for the constants. Deviates in
        the ranking: position in the hierarchy times a random number, as published, but with the box's place by area for
        the position, which OpenCV does not tell, and a seeded generator: OpenCV's own order changes from call to
        call.
    """

    PRESETS: ClassVar = {"default": SelectiveSearchConfig(), "reference": SelectiveSearchConfig()}
    NEEDS_IMAGES: ClassVar[bool] = True
    BASELINE: ClassVar[bool] = True

    config: SelectiveSearchConfig

    @classmethod
    def check_here(cls, *, with_attention: bool) -> None:
        """See :class:`figureground.proposals.interface.Method`.

        Raises:
            UsageError: If OpenCV is not installed, or without its contributed modules.
        """
        super().check_here(with_attention=with_attention)
        _opencv()

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the features only say how fine the masks are.

        Raises:
            UsageError: If OpenCV is not installed, or without its contributed modules.
            ValueError: If ``images`` is not given.
        """
        if images is None:
            raise ValueError("The method `selective_search` looks at pixels: give `images` beside the features.")
        cv2 = _opencv()
        h, w = features.values.shape[1:3]
        found = []
        for image in images:
            pixels = (image.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()
            boxes = self._ranked(_search(cv2, pixels, self.config))[: self.config.max_boxes]
            masks = [_fill(box / self.config.side, h, w) for box in boxes]
            scores = 1 - np.arange(len(masks)) / max(len(masks), 1)
            like = torch.zeros(h, w, device=features.values.device)
            found.append(to_instances([mask.to(like.device) for mask in masks], scores.tolist(), like))
        return found

    def _ranked(self, boxes: Int[np.ndarray, "M 4"]) -> Int[np.ndarray, "M 4"]:
        """Large regions stand high in the hierarchy and are likely to come early."""
        boxes = np.unique(boxes, axis=0)
        boxes = boxes[np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")]
        draws = np.random.default_rng(self.config.seed).random(len(boxes))
        return boxes[np.argsort(draws * np.arange(1, len(boxes) + 1), kind="stable")]


def _opencv() -> Any:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        cv2 = None
    if not hasattr(getattr(cv2, "ximgproc", None), "segmentation"):
        missing = (
            "OpenCV, which is not installed" if cv2 is None else "the contributed modules of OpenCV (cv2.ximgproc)"
        )
        raise UsageError(f"Selective search needs {missing}.", 'pip install "figureground[selective-search]"')
    return cv2


def _search(cv2: Any, pixels: UInt8[np.ndarray, "H W 3"], config: SelectiveSearchConfig) -> Int[np.ndarray, "M 4"]:
    """Boxes as x, y, width, height in the square image, in no particular order."""
    square = cv2.resize(pixels, (config.side, config.side))
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    # OpenCV's order of channels.
    search.setBaseImage(np.ascontiguousarray(square[:, :, ::-1]))
    if config.mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    return np.asarray(search.process()).reshape(-1, 4).astype(np.int64)


def _fill(box: Float[np.ndarray, "4"], h: int, w: int) -> Tensor:
    """The patches of a box given in shares of the image, at least one."""
    x, y, width, height = (float(value) for value in box)
    mask = torch.zeros(h, w, dtype=torch.bool)
    rows, columns = _whole(y, y + height, h), _whole(x, x + width, w)
    mask[rows, columns] = True
    return mask


def _whole(start: float, end: float, length: int) -> slice:
    first = min(round(start * length), length - 1)
    return slice(first, max(round(end * length), first + 1))
