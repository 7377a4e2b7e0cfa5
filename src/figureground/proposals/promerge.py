"""ProMerge: prompt the features at grid points, tell background prompts apart, merge what is left. No eigenproblem.

Li, Wang, Xu, Girdhar, Misra: ProMerge: Prompt and merge for unsupervised instance segmentation. ECCV 2024. Written from
the paper.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from figureground.config import Config
from figureground.ops.components import label_components
from figureground.proposals.interface import Method, to_instances
from figureground.structures import Instances, PatchFeatures


class ProMergeConfig(Config):
    """How prompts are answered, filtered and merged."""

    stride: int = Field(default=4, ge=1, description="Patches from prompt to prompt (published code: 4).")
    tau: float = Field(default=0.2, ge=-1, le=1, description="Cosine to the prompt above which a patch is in (0.2).")
    side: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of an image side that a mask covers to touch it (published code: 0.5).",
    )
    vote: float = Field(
        default=0.5, ge=0, lt=1, description="Share of background masks above which a patch is background (0.5)."
    )
    min_background: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the image below which a background is none (published code: 0.1).",
    )
    component: float = Field(
        default=0.5, ge=0, description="Smallest component, relative to the one with the prompt (published code: 0.5)."
    )
    max_background: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Share of a mask's new patches in the background, below which it stays (0.8).",
    )
    max_likeness: float = Field(
        default=0.1, ge=-1, le=1, description="Cosine to the background below which a mask stays (published code: 0.1)."
    )
    merge: float = Field(
        default=0.5, gt=0, le=1, description="Share of a mask inside a larger one above which they merge (0.5)."
    )
    merge_alike: float = Field(
        default=0.1, gt=0, le=1, description="The same for masks with like features (published code: 0.1)."
    )
    alike: float = Field(default=0.1, ge=-1, le=1, description="Cosine from which on features are like (0.1).")
    min_area: float = Field(
        default=0.0, ge=0, lt=1, description="Objects up to this share of the patches are dropped (published code: 0)."
    )


class ProMerge(Method):
    """Masks of grid prompts, without the background, merged into objects.

    The score is how unlike the background an object is, (1 - cosine of its mean feature to that of the background) / 2,
    times its share of all objects' patches. No objects where no background is found.

    Reference:
        Li et al., ECCV 2024, section 3. Deviates in both presets: masks go through each pass in a fixed order (area,
        then prompt; the published code iterates over sets), features may have any width, and prompts lie in the middle
        of their cells; the dense CRF comes after (``refine``). ``default`` drops specks.
    """

    PRESETS: ClassVar = {"default": ProMergeConfig(min_area=0.01), "reference": ProMergeConfig()}

    config: ProMergeConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the pixels are not looked at."""
        return [self._propose_one(values) for values in features.values]

    def _propose_one(self, values: Float[Tensor, "h w D"]) -> Instances:
        config = self.config
        h, w = values.shape[:2]
        unit = functional.normalize(values.flatten(0, 1).to(torch.promote_types(values.dtype, torch.float32)), dim=1)
        prompts = grid(h, w, config.stride).to(values.device)
        masks = (unit[prompts] @ unit.mT > config.tau).reshape(-1, h, w)
        touching = sides_touched(masks, config.side) > 1
        background = masks[touching].float().mean(0) > config.vote
        if not bool(background.any()) or float(background.float().mean()) < config.min_background:
            return to_instances([], [], values[..., 0])
        parts = self._parts(masks[~touching], prompts[~touching])
        ground = functional.normalize(unit[background.flatten()].mean(0), dim=0)
        objects = self._merged(self._foreground(parts, unit, background, ground), unit)
        objects = [mask for mask in objects if int(mask.sum()) > config.min_area * h * w]
        total = sum(int(mask.sum()) for mask in objects)
        scores = [float((1 - _mean(unit, mask) @ ground).clamp(0, 2) / 2) * int(mask.sum()) / total for mask in objects]
        # Merged objects may overlap; a share of their sum never exceeds 1.
        return to_instances(objects, scores, values[..., 0])

    def _parts(self, masks: Bool[Tensor, "M h w"], prompts: Int[Tensor, "M"]) -> list[Bool[Tensor, "h w"]]:
        """Components that are not much smaller than the one with the prompt, each once, in the order of prompts."""
        parts: dict[bytes, Tensor] = {}
        for labels, prompt in zip(label_components(masks), prompts.tolist(), strict=True):
            areas = labels.flatten().bincount()
            at_prompt = int(labels.flatten()[prompt])
            if at_prompt == 0:
                continue  # a zero feature is not even like itself
            large = torch.nonzero(areas[1:] >= self.config.component * areas[at_prompt]).flatten() + 1
            for mask in labels == large[:, None, None]:
                parts.setdefault(mask.cpu().numpy().tobytes(), mask)
        return list(parts.values())

    def _foreground(
        self, parts: list[Bool[Tensor, "h w"]], unit: Tensor, background: Bool[Tensor, "h w"], ground: Tensor
    ) -> list[Bool[Tensor, "h w"]]:
        """The cascade: from small to large, a mask stays if what it adds is not background."""
        covered = torch.zeros_like(background)
        kept = []
        for mask in sorted(parts, key=_area):
            new = mask & ~covered
            # A mask that adds nothing overlaps the background with nothing.
            overlap = int((new & background).sum()) / max(_area(new), 1)
            likeness = float(_mean(unit, mask) @ ground)
            if overlap < self.config.max_background and likeness < self.config.max_likeness:
                kept.append(mask)
                covered = covered | mask
        return kept

    def _merged(self, masks: list[Bool[Tensor, "h w"]], unit: Tensor) -> list[Bool[Tensor, "h w"]]:
        """From large to small: a mask joins the first object that holds enough of it, or is an object of its own."""
        config = self.config
        objects: list[Tensor] = []
        for mask in sorted(masks, key=_area, reverse=True):
            for index, larger in enumerate(objects):
                inside = int((mask & larger).sum()) / _area(mask)
                if inside > config.merge or (
                    inside > config.merge_alike and float(_mean(unit, mask) @ _mean(unit, larger)) >= config.alike
                ):
                    objects[index] = larger | mask
                    break
            else:
                objects.append(mask)
        return objects


def grid(h: int, w: int, stride: int) -> Int[Tensor, "P"]:
    """Flat indices of the prompts: the middle of each cell of ``stride`` patches, at least one a row and column."""
    rows = torch.arange(min(stride // 2, h - 1), h, stride)
    columns = torch.arange(min(stride // 2, w - 1), w, stride)
    return (rows[:, None] * w + columns).flatten()


def sides_touched(masks: Bool[Tensor, "M h w"], share: float) -> Int[Tensor, "M"]:
    """On how many of the four image sides at least ``share`` of the patches are in each mask."""
    rims = (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1])
    return torch.stack([rim.float().mean(1) >= share for rim in rims]).sum(0)


def _area(mask: Tensor) -> int:
    return int(mask.sum())


def _mean(unit: Float[Tensor, "N D"], mask: Bool[Tensor, "h w"]) -> Float[Tensor, "D"]:
    return functional.normalize(unit[mask.flatten()].mean(0), dim=0)
