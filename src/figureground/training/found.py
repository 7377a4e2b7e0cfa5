"""What FOUND's head is trained by: a coarse background at first, its own refined masks ever after.

Siméoni et al.: Unsupervised object localization: observing the background to discover objects. CVPR 2023, section 3.2.
Written from the paper.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from figureground.config import Config
from figureground.ops.masks import resize_masks
from figureground.proposals.found import background_similarity
from figureground.refine.bilateral import BilateralSolverConfig, bilateral_solver_masks
from figureground.structures import PatchFeatures


class FoundLossConfig(Config):
    """Constants of FOUND's losses; the defaults are the published ones."""

    threshold: float = Field(
        default=0.3, ge=-1, le=1, description="Cosine to the seed above which a patch is background (paper: 0.3)."
    )
    weight_heads: bool = Field(
        default=True, description="Weigh attention heads to find the background (paper: yes). The head sees them bare."
    )
    background_steps: int = Field(
        default=100, ge=0, description="First steps, in which the refined background teaches (paper: 100)."
    )
    refined_weight: float = Field(
        default=1.5, ge=0, description="Of the loss to the prediction's own refined mask (paper: 1.5)."
    )
    own_weight: float = Field(
        default=4.0, ge=0, description="Of the loss to its own mask, after the first steps (paper: 4.0)."
    )
    bilateral: BilateralSolverConfig = Field(
        default=BilateralSolverConfig(), description="What refines a mask (paper: 16, 16, 8)."
    )
    min_iou: float = Field(
        default=0.5, ge=0, le=1, description="A refined mask is used if its IoU with its input is above (paper: 0.5)."
    )


def found_losses(
    logits: Float[Tensor, "B h w"],
    features: PatchFeatures,
    images: UInt8[Tensor, "B H W 3"],
    step: int,
    config: FoundLossConfig,
) -> dict[str, Tensor]:
    """Losses of a batch of predictions.

    Binary cross-entropy of the prediction to its own mask refined (``refined``), and to the refined complement of the
    background (``background``) in the first steps, to its own mask (``own``) in the others; all weighted.

    Args:
        logits: The head's, per patch.
        features: What the head has seen; the background is found in them.
        images: RGB, at the size of the features' images; masks are drawn to their edges.
        step: From 0.
        config: The constants.

    Reference:
        Siméoni et al., CVPR 2023, section 3.2. Deviates: logits are brought to the pixels bilinearly, where masks are
        refined, and all losses are taken there; the paper leaves the resolution open. Targets are masks, not the
        solver's soft values. The background of a backbone without CLS attention is that of
        :class:`figureground.proposals.found.Found`.
    """
    height, width = images.shape[1:3]
    upsampled = functional.interpolate(logits[:, None], size=(height, width), mode="bilinear")[:, 0]
    own = upsampled.detach() > 0
    early = step < config.background_steps
    masks = torch.stack([own, foreground(features, (height, width), config)], 1) if early else own[:, None]
    refined = torch.stack([refine(image, pair, config) for image, pair in zip(images, masks, strict=True)])

    def loss(target: Bool[Tensor, "B H W"]) -> Tensor:
        return functional.binary_cross_entropy_with_logits(upsampled, target.to(upsampled))

    losses = {"refined": config.refined_weight * loss(refined[:, 0])}
    if early:
        return losses | {"background": loss(refined[:, 1])}
    return losses | {"own": config.own_weight * loss(own)}


def foreground(features: PatchFeatures, size: tuple[int, int], config: FoundLossConfig) -> Bool[Tensor, "B H W"]:
    """The complement of the background of each image, at ``size = (height, width)``."""
    attentions = [None] * len(features.values) if features.cls_attention is None else features.cls_attention
    similarities = [
        background_similarity(values, attention, config.threshold, config.weight_heads)
        for values, attention in zip(features.values, attentions, strict=True)
    ]
    return resize_masks(torch.stack(similarities) <= config.threshold, size)


def refine(
    image: UInt8[Tensor, "H W 3"], masks: Bool[Tensor, "M H W"], config: FoundLossConfig
) -> Bool[Tensor, "M H W"]:
    """Masks drawn to the image's edges, each where it stays itself; else the mask as it was."""
    refined = bilateral_solver_masks(image, masks, config.bilateral) > 0.5
    intersection, union = (refined & masks).sum((1, 2)), (refined | masks).sum((1, 2))
    return torch.where((intersection > config.min_iou * union)[:, None, None], refined, masks)
