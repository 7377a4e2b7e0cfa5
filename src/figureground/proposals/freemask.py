"""Free Mask: every patch asks which patches look like it; the answers that are surest are objects.

Wang, Yu, De Mello, Kautz, Anandkumar, Shen, Alvarez: FreeSOLO: Learning to segment objects without annotations.
CVPR 2022. Written from the paper.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from figureground.config import Config
from figureground.ops.masks import masks_to_boxes
from figureground.ops.nms import matrix_nms
from figureground.proposals.interface import Method, to_instances
from figureground.structures import Instances, PatchFeatures


class FreeMaskConfig(Config):
    """What asks, and which answers are kept."""

    scales: tuple[float, ...] = Field(
        default=(1.0, 0.5, 0.25),
        min_length=1,
        description="Sizes of the map of queries, relative to the map of keys (paper: 1, 0.5, 0.25).",
    )
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="Similarity, stretched to [0, 1] per query, of a mask (paper: 0.5)."
    )
    min_patches: int = Field(default=2, ge=1, description="Smallest mask, in patches (published code: 2).")
    max_candidates: int | None = Field(
        default=None, ge=1, description="Surest masks that enter the suppression; none: all (published code: all)."
    )
    sigma: float = Field(default=2.0, gt=0, description="Of the Gaussian of Matrix-NMS (published code: 2).")
    max_masks: int = Field(default=20, ge=1, description="Surest masks after the suppression (published code: 20).")
    min_maskness: float = Field(
        default=0.7, ge=0, le=1, description="Least maskness after the suppression (published code: 0.7)."
    )
    max_width: float = Field(
        default=0.95, gt=0, description="Share of the map's width below which a box stays (published code: 0.95)."
    )
    min_centre_y: float = Field(
        default=0.2,
        lt=1,
        description="Share of the map's height below which a box's centre lies (published code: 0.2).",
    )
    filter_first: bool = Field(
        default=False,
        description="Whether boxes are filtered before the suppression as well, so that they take nobody's place "
        "(published code: no).",
    )


class FreeMask(Method):
    """Queries on several scales, one mask each, ranked by maskness, thinned by Matrix-NMS.

    The score is the maskness after the suppression: the mean similarity inside the mask, lowered by surer neighbours.

    Reference:
        Wang et al., CVPR 2022, section 3.2. Deviates in both presets: boxes are the extent of the masks (the published
        code places them around the centre of mass, which is wrong for split masks), the filters look at the map and not
        at the image it is enlarged to, of equally sure masks the earlier query wins (the published code sorts
        unstably), and a query that is as similar to everything gives no mask. ``default`` draws masks tighter,
        takes backgrounds out before they suppress objects and take their places, lets objects lie at the top of an
        image, and suppresses among the 500 surest.
    """

    PRESETS: ClassVar = {
        "default": FreeMaskConfig(
            threshold=0.6, max_candidates=500, min_maskness=0.0, min_centre_y=0.0, filter_first=True
        ),
        "reference": FreeMaskConfig(),
    }

    config: FreeMaskConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the pixels are not looked at."""
        return [self._propose_one(values) for values in features.values]

    def _propose_one(self, values: Float[Tensor, "h w D"]) -> Instances:
        config = self.config
        soft = query_maps(values, config.scales)
        masks = soft >= config.threshold
        large = masks.flatten(1).sum(1) >= config.min_patches
        soft, masks = soft[large], masks[large]
        scores = maskness(soft, masks)
        if config.filter_first:
            plausible = self._plausible(masks)
            masks, scores = masks[plausible], scores[plausible]
        candidates = scores.sort(descending=True, stable=True).indices[: config.max_candidates]
        masks, scores = masks[candidates], scores[candidates]
        scores = matrix_nms(masks, scores, sigma=config.sigma)
        best = scores.sort(descending=True, stable=True).indices[: config.max_masks]
        masks, scores = masks[best], scores[best]
        keep = self._plausible(masks) & (scores >= config.min_maskness)
        return to_instances(masks[keep], scores[keep].tolist(), values[..., 0])

    def _plausible(self, masks: Bool[Tensor, "M h w"]) -> Bool[Tensor, "M"]:
        h, w = masks.shape[1:]
        boxes = masks_to_boxes(masks)
        narrow = boxes[:, 2] - boxes[:, 0] < self.config.max_width * w
        return narrow & ((boxes[:, 1] + boxes[:, 3]) / 2 > self.config.min_centre_y * h)


def query_maps(values: Float[Tensor, "h w D"], scales: tuple[float, ...]) -> Float[Tensor, "Q h w"]:
    """Similarity of each query to each patch, stretched to [0, 1] for each query.

    Args:
        values: The keys; queries are the keys at each of ``scales``, made smaller *before* they are normalised.
        scales: One at which no whole patch is left is skipped.

    Returns:
        Scale by scale, each in reading order; 0 everywhere for a query that is as similar to every patch.
    """
    h, w, width = values.shape
    keys = values.to(torch.promote_types(values.dtype, torch.float32)).permute(2, 0, 1)[None]
    queries = [_resized(keys, scale).flatten(2)[0].mT for scale in scales if scale * min(h, w) >= 1]
    keys = functional.normalize(keys.flatten(2)[0], dim=0)
    similarity = functional.normalize(torch.cat([keys.new_zeros((0, width)), *queries]), dim=1) @ keys
    low, high = similarity.aminmax(dim=1, keepdim=True)
    spread = high - low
    # A spread at the level of rounding has no structure to stretch.
    stretched = torch.where(spread > 1e-5, (similarity - low) / spread.clamp(min=1e-5), 0.0)
    return stretched.reshape(-1, h, w)


def maskness(soft: Float[Tensor, "M h w"], masks: Bool[Tensor, "M h w"]) -> Float[Tensor, "M"]:
    """Mean soft value inside each mask, 0 for an empty one."""
    return (soft * masks).flatten(1).sum(1) / masks.flatten(1).sum(1).clamp(min=1)


def _resized(keys: Float[Tensor, "1 D h w"], scale: float) -> Float[Tensor, "1 D q r"]:
    if scale == 1:
        return keys
    return functional.interpolate(keys, scale_factor=scale, mode="bilinear", align_corners=False)
