"""Masks of one image refined: drawn to its edges, holes filled, and dropped if they changed too much."""

from typing import Literal

import torch
from jaxtyping import Bool, Int64, UInt8
from pydantic import Field
from torch import Tensor

from figureground.config import Config
from figureground.refine.bilateral import BilateralSolverConfig, bilateral_solver_masks
from figureground.refine.dense_crf import DenseCRF, DenseCRFConfig
from figureground.refine.inputs import Image, Masks, image_and_masks
from figureground.refine.morphology import fill_holes


class RefineConfig(Config):
    """How masks are refined; the defaults are CutLER's."""

    method: Literal["dense_crf", "bilateral", "none"] = Field(
        default="dense_crf", description="What draws a mask to the edges. CutLER: dense_crf; TokenCut: bilateral."
    )
    crf: DenseCRFConfig = Field(default=DenseCRFConfig(), description="Constants of the method dense_crf.")
    bilateral: BilateralSolverConfig = Field(
        default=BilateralSolverConfig(), description="Constants of the method bilateral."
    )
    min_iou: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Drop a mask whose IoU with the mask before is below. CutLER, TokenCut: 0.5.",
    )
    fill_holes: bool = Field(default=True, description="Fill the holes of refined masks. CutLER, TokenCut: true.")


CUTLER = RefineConfig()


def refine_masks(
    image: Image, masks: Masks, config: RefineConfig = CUTLER
) -> tuple[Bool[Tensor, "M H W"], Bool[Tensor, " M"]]:
    """Refine each mask of an image by itself and say which of them to keep.

    Args:
        image: RGB.
        masks: Coarse masks; there may be none.
        config: Method, constants and acceptance.

    Returns:
        The refined masks, those to be dropped among them, and whether each is accepted: its IoU with the mask before
        is at least ``min_iou`` and it is not empty. On the device of the input (arrays count as on the CPU).

    Raises:
        ValueError: If the image or the masks are not of the types named.

    Reference:
        Wang et al., Cut and learn (CutLER), CVPR 2023, section 3.2 and its code: method, threshold 0.5, holes filled,
        IoU at least 0.5 with the mask before. Deviates for TokenCut: all components are kept, not the largest alone,
        and a dropped mask is reported as such, not negated.
    """
    image, masks = image_and_masks(image, masks)
    return Refiner(image[None], config)(masks, torch.zeros(len(masks), dtype=torch.int64, device=masks.device))


class Refiner:
    """Refines masks of images of one size as they come; what depends on the images alone is computed once.

    Args:
        images: RGB.
        config: Method, constants and acceptance.
    """

    def __init__(self, images: UInt8[Tensor, "B H W 3"], config: RefineConfig = CUTLER) -> None:
        self._images, self._config = images, config
        self._crf = DenseCRF(images, config.crf) if config.method == "dense_crf" else None

    def __call__(
        self, masks: Bool[Tensor, "S H W"], owners: Int64[Tensor, " S"]
    ) -> tuple[Bool[Tensor, "S H W"], Bool[Tensor, " S"]]:
        """See :func:`refine_masks`.

        Args:
            masks: Coarse masks of all images.
            owners: The image that each belongs to, in rising order.
        """
        config = self._config
        if self._crf is not None:
            refined = self._crf(masks, owners) > 0.5
        elif config.method == "bilateral":
            counts = torch.bincount(owners, minlength=len(self._images)).tolist()
            own = zip(self._images, masks.split(counts), strict=True)
            refined = torch.cat([bilateral_solver_masks(*one, config.bilateral) > 0.5 for one in own])
        else:
            refined = masks
        if config.fill_holes:
            refined = fill_holes(refined)
        intersection, union = (refined & masks).sum((1, 2)), (refined | masks).sum((1, 2))
        accepted = (intersection >= config.min_iou * union) & refined.any(2).any(1)
        return refined, accepted
