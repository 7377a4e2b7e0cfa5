"""Object mask proposals of any run, and pairs of views of each: what MaskContrast learns from.

A proposal is kept as one square (:mod:`figureground.data.squares`) whose further channels are masks; the views of a
batch are cut from it at once (:mod:`figureground.data.crops`), masks and photographs alike.
"""

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from figureground.data.coco import ImageAnnotations
from figureground.data.crops import ColourConfig, random_windows, recolour, resample
from figureground.data.images import decode
from figureground.data.label_file import LabelFile, Report
from figureground.data.resize import resize_image
from figureground.errors import ImageError, RunError, UsageError
from figureground.ops.components import split_components
from figureground.ops.masks import resize_masks
from figureground.ops.rle import decode as decode_masks

Square = tuple[UInt8[np.ndarray, "S S C"], float]


class MaskPairsConfig(ColourConfig):
    """Which masks are proposals, and how two views of each are drawn; the defaults are MaskContrast's."""

    masks: Literal["best", "union", "instances"] = Field(
        default="union",
        description="The proposal of an image: its surest mask, all its masks together (paper: a saliency mask), or "
        "each mask one by itself.",
    )
    min_score: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Masks below are left out; one without a score has 1 (paper: 0.5, of a pixel).",
    )
    min_contour: float = Field(
        default=0.01, ge=0, lt=1, description="Parts of a mask below this share of the image are dropped (paper: 0.01)."
    )
    area: tuple[float, float] = Field(
        default=(0.01, 0.99),
        description="Share of an image, and of a view, that its mask covers (paper: 0.01 to 0.99).",
    )
    tries: int = Field(
        default=10, ge=1, le=100, description="Views drawn until one has such a share; else it is the whole image."
    )
    size: int = Field(default=224, ge=8, le=1024, description="Side of a view, px (paper: 224).")
    scale: tuple[float, float] = Field(
        default=(0.2, 1.0), description="Share of the area that a view covers (paper: 0.2 to 1)."
    )
    aspect: tuple[float, float] = Field(
        default=(3 / 4, 4 / 3), description="Width over height of a view before it is made square (MoCo: 3/4 to 4/3)."
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="Probability that a view is mirrored (paper: 0.5).")
    saturation: float = Field(default=0.4, ge=0, le=1, description="Largest relative change of saturation (MoCo: 0.4).")

    @field_validator("area", "scale", "aspect")
    @classmethod
    def _ascending(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not 0 < bounds[0] <= bounds[1] < math.inf:
            raise ValueError(f"A range of `pairs` is wrong: 0 < low <= high, got {bounds}.")
        return bounds

    @field_validator("area", "scale")
    @classmethod
    def _a_share(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[1] > 1:
            raise ValueError(f"`pairs.area` and `pairs.scale` are shares, at most 1, got {bounds}.")
        return bounds

    @property
    def channels(self) -> int:
        """Of a square: RGB, the proposal, and where there are several in an image all of them together."""
        return 5 if self.masks == "instances" else 4


class MaskProposals:
    """Photographs and their mask proposals, as squares; can be pickled.

    Args:
        path: A COCO file, as :class:`LabelFile` takes it.
        images: The folder that its ``file_name`` are relative to.
        config: Which masks are proposals.
        side: Of a square, px.
        report: Called for each annotation and each image that cannot be used; it must be picklable if this shall be.

    Attributes:
        path: The file.
        rejected: Annotations that could not be used.
        used: Images with a proposal.
        left_out: Images that have masks, but none that is a proposal.

    Raises:
        UsageError: If the file is broken (see :class:`LabelFile`), or nothing in it is a proposal.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 3.2 and the published code. Deviates: parts of a mask are 4-connected.
    """

    def __init__(self, path: Path, images: Path, config: MaskPairsConfig, side: int, report: Report) -> None:
        self.path, self.images, self.config, self.side, self._report = path, images, config, side, report
        self._file = LabelFile(path, report)
        self.rejected = self._file.rejected
        # Image, and place among its proposals.
        self._places: list[tuple[int, int]] = []
        self.used = self.left_out = 0
        for index, labelled in enumerate(self._file):
            count = len(self._proposals(labelled))
            self._places += [(index, place) for place in range(count)]
            self.used += count > 0
            self.left_out += bool(labelled["annotations"]) and not count
        if not self._places:
            raise self._nothing()

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """The ``file_name`` of the image of the proposal at a place."""
        return self._file[self._places[index][0]]["file_name"]

    def example(self, index: int) -> Square:
        """The photograph of a proposal and its masks, squashed, and width over height; if it cannot be read, the next.

        Returns:
            Channels are RGB, the proposal (0 or 255) and, of ``instances``, all proposals of the image.

        Raises:
            RunError: If no image can be used.
        """
        for offset in range(len(self)):
            number, place = self._places[(index + offset) % len(self)]
            labelled = self._file[number]
            try:
                return self._load(labelled, place)
            except ImageError as error:
                self._report(labelled["file_name"], error.message)
        raise RunError(
            f"None of the {self.used} images of {self.path} can be used in {self.images}.",
            "Check that this is the folder its file names are relative to.",
        )

    def _load(self, labelled: ImageAnnotations, place: int) -> Square:
        side = self.side
        pixels, size = decode(self.images / labelled["file_name"], lambda _: (side, side))
        if size != (labelled["height"], labelled["width"]):
            raise ImageError(
                f"The image has {size[0]}x{size[1]} px, but its masks have "
                f"{labelled['height']}x{labelled['width']} (height x width)."
            )
        proposals = self._proposals(labelled)
        square = np.empty((side, side, self.config.channels), np.uint8)
        square[..., :3] = resize_image(np.ascontiguousarray(pixels), (side, side))
        square[..., 3] = 255 * proposals[place].numpy()
        if self.config.channels > 4:
            square[..., 4] = 255 * proposals.any(0).numpy()
        return square, size[1] / size[0]

    def _proposals(self, labelled: ImageAnnotations) -> Bool[Tensor, "M S S"]:
        """Those of an image, surest first."""
        scored = [(_score(entry), entry["segmentation"]) for entry in labelled["annotations"]]
        sure = sorted((each for each in scored if each[0] >= self.config.min_score), key=lambda each: -each[0])
        # One at a time: a single mask of a large photograph is large enough.
        masks = [resize_masks(decode_masks([rle]), (self.side, self.side))[0] for _, rle in sure]
        if self.config.masks == "union" and masks:
            masks = [torch.stack(masks).any(0)]
        low, high = self.config.area
        proposals = []
        for mask in masks:
            parts, _ = split_components(mask[None], self.config.min_contour * mask.numel())
            whole = parts.any(0)
            if low <= whole.float().mean() <= high:
                proposals.append(whole)
                if self.config.masks == "best":
                    break
        return torch.stack(proposals) if proposals else torch.zeros(0, self.side, self.side, dtype=torch.bool)

    def _nothing(self) -> UsageError:
        config, images = self.config, len(self._file)
        if not self._file.annotations:
            return UsageError(
                f"{self.path}: none of its {images} images has a mask.", "Name a run that has found something."
            )
        return UsageError(
            f"{self.path}: none of the {self._file.annotations} masks of its {images} images is left to learn from.",
            f"Masks count with a score from {config.min_score:g} (pairs.min_score) and {config.area[0]:.0%} to "
            f"{config.area[1]:.0%} of the image (pairs.area), without parts below {config.min_contour:.0%} "
            "(pairs.min_contour).",
        )


def _score(entry: dict[str, Any]) -> float:
    return 1.0 if entry["score"] is None else entry["score"]


class MaskPairs(NamedTuple):
    """Two views of each proposal of a batch, drawn independently.

    Attributes:
        queries: RGB in [0, 1].
        query_masks: The proposal in it.
        keys: The other view.
        key_masks: The proposal in that.
        figures: All proposals of the image in the first view.
    """

    queries: Float[Tensor, "B 3 s s"]
    query_masks: Bool[Tensor, "B s s"]
    keys: Float[Tensor, "B 3 s s"]
    key_masks: Bool[Tensor, "B s s"]
    figures: Bool[Tensor, "B s s"]


def mask_pairs(
    squares: UInt8[Tensor, "B S S C"], aspects: Float[Tensor, "B"], config: MaskPairsConfig, generator: torch.Generator
) -> MaskPairs:
    """Draw the views of a batch.

    Args:
        squares: Of :class:`MaskProposals`; views are on their device.
        aspects: Width over height of each photograph, on the CPU.
        config: How views are drawn.
        generator: Of every draw, on the CPU.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 4.1, with the published augmentations. Deviates: where no draw has a
        mask of the right share, the view is the whole image, and the image is not replaced by another.
    """
    source = squares.float() / 255
    views = []
    for _ in range(2):
        windows = _windows(squares[..., 3] >= 128, aspects, config, generator)
        mirrored = torch.rand(len(squares), generator=generator) < config.flip
        crops = resample(source, windows, mirrored, config.size)
        masks = crops[:, 3:] > 0.5
        views.append((recolour(crops[:, :3], config, generator), masks))
    (queries, first), (keys, second) = views
    return MaskPairs(queries, first[:, 0], keys, second[:, 0], first[:, -1])


def _windows(
    masks: Bool[Tensor, "B S S"], aspects: Float[Tensor, "B"], config: MaskPairsConfig, generator: torch.Generator
) -> Float[Tensor, "B 4"]:
    """A window of each mask, the first drawn whose share of mask is right; on the device of the masks."""
    drawn = random_windows(aspects.repeat(config.tries), config.scale, config.aspect, generator)
    drawn = drawn.unflatten(0, (config.tries, len(aspects))).transpose(0, 1).to(masks.device)
    shares = _shares(masks, drawn)
    right = (shares >= config.area[0]) & (shares <= config.area[1])
    first = right.float().argmax(1)[:, None, None].expand(-1, 1, 4)
    whole = drawn.new_tensor([0.0, 0.0, 1.0, 1.0])
    return torch.where(right.any(1, keepdim=True), drawn.gather(1, first)[:, 0], whole)


def _shares(masks: Bool[Tensor, "B S S"], windows: Float[Tensor, "B T 4"]) -> Float[Tensor, "B T"]:
    """The share of each window that the mask covers, exactly, by the integral of the mask at its corners."""
    integral = functional.pad(masks.float().cumsum(1).cumsum(2), (1, 0, 1, 0))
    corners = windows[..., [[0, 1], [2, 1], [0, 3], [2, 3]]]
    # Between whole pixels the integral is bilinear.
    values = functional.grid_sample(integral[:, None], 2 * corners - 1, mode="bilinear", align_corners=True)[:, 0]
    left_top, right_top, left_bottom, right_bottom = values.unbind(2)
    covered = right_bottom - right_top - left_bottom + left_top
    x1, y1, x2, y2 = windows.unbind(2)
    return covered / ((x2 - x1) * (y2 - y1) * masks.shape[1] * masks.shape[2])
