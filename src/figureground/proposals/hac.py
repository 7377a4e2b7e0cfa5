"""HAC: neighbouring patches merge while they are alike; regions at several levels are wholes, parts and their parts.

Cao, Joshi, Gui, Wang: HASSOD: Hierarchical adaptive self-supervised object detection. NeurIPS 2023. Written from the
paper.
"""

import heapq
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from figureground.config import Config
from figureground.proposals.interface import Method, to_instances
from figureground.structures import Instances, PatchFeatures


class HACConfig(Config):
    """At which likeness merging stops, and which regions are kept."""

    thresholds: tuple[float, ...] = Field(
        default=(0.4, 0.2, 0.1),
        min_length=1,
        description="Cosines of neighbours under which merging stops, one partition each (paper: 0.4, 0.2, 0.1).",
    )
    corners: int = Field(
        default=3, ge=1, le=5, description="Image corners from which on a region is background (paper: 3; 5 never)."
    )
    min_patches: int = Field(
        default=2, ge=1, description="Smallest region, in patches (published code: 100 px of 480 x 480, 1.6 patches)."
    )
    min_area: float = Field(
        default=0.0, ge=0, lt=1, description="Regions up to this share of the patches are dropped (published code: 0)."
    )


class HAC(Method):
    """The regions of several levels of agglomeration, each once.

    The score is a region's share of the image, so that wholes come before their parts. Which region is part of which
    stands in the masks themselves: see :func:`figureground.ops.masks.mask_parents` and :func:`levels`.

    Reference:
        Cao et al., NeurIPS 2023, section 3.1. Deviates in both presets: of equally alike pairs the one of the lowest
        numbers merges first (the published code leaves it to a dictionary), a queue finds the pair instead of a search
        through all, regions are scored (by size: it ranked better than how long a region lasts between merges), and the
        dense CRF comes after (``refine``). ``default`` drops specks.
    """

    PRESETS: ClassVar = {"default": HACConfig(min_area=0.01), "reference": HACConfig()}

    PARTS: ClassVar = True
    config: HACConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the pixels are not looked at."""
        return [self._propose_one(values) for values in features.values]

    def _propose_one(self, values: Float[Tensor, "h w D"]) -> Instances:
        config = self.config
        h, w = values.shape[:2]
        pairs, likeness = agglomerate(values)
        smallest = max(config.min_patches, int(config.min_area * h * w) + 1)
        masks, scores, seen = [], [], set()
        for threshold in config.thresholds:
            # Merging stops at the first pair that is not alike enough, even if a later one would be.
            under = torch.nonzero(likeness < threshold).flatten()
            stop = int(under[0]) if len(under) else len(likeness)
            owner = _owners(h * w, pairs[:stop])
            for region in owner.unique().tolist():
                mask = (owner == region).reshape(h, w)
                cornered = int(mask[[0, 0, -1, -1], [0, -1, 0, -1]].sum()) >= config.corners
                if region in seen or cornered or int(mask.sum()) < smallest:
                    continue
                seen.add(region)
                masks.append(mask.to(values.device))
                scores.append(float(mask.float().mean()))
        return to_instances(masks, scores, values[..., 0])


def agglomerate(values: Float[Tensor, "h w D"]) -> tuple[Int[Tensor, "T 2"], Float[Tensor, "T"]]:
    """Merge the most alike pair of neighbouring regions until one is left.

    Regions are 4-connected; two are as alike as the cosine of their mean features, each feature of unit length. Region
    ``p < N`` is patch ``p``; the ``t``-th merge makes region ``N + t``. One merge
    follows on another, on the CPU.

    Returns:
        For each merge the two regions, and how alike they were.
    """
    h, w, width = values.shape
    n = h * w
    flat = functional.normalize(values.flatten(0, 1).to(torch.promote_types(values.dtype, torch.float32)), dim=1)
    # The cosine of two means is that of two sums.
    sums = np.zeros((2 * n - 1, width))
    sums[:n] = flat.cpu().double().numpy()
    units = sums.copy()
    neighbours: dict[int, set[int]] = {p: set() for p in range(n)}
    grid = np.arange(n).reshape(h, w)
    edges = [*zip(grid[:, :-1].flat, grid[:, 1:].flat, strict=True), *zip(grid[:-1].flat, grid[1:].flat, strict=True)]
    queue = []
    for a, b in edges:
        neighbours[int(a)].add(int(b))
        neighbours[int(b)].add(int(a))
        queue.append((-float(units[a] @ units[b]), int(a), int(b)))
    heapq.heapify(queue)
    pairs, likeness = [], []
    for new in range(n, 2 * n - 1):
        cost, a, b = heapq.heappop(queue)
        while a not in neighbours or b not in neighbours:
            cost, a, b = heapq.heappop(queue)
        around = sorted((neighbours.pop(a) | neighbours.pop(b)) - {a, b})
        sums[new] = sums[a] + sums[b]
        length = np.linalg.norm(sums[new])
        units[new] = sums[new] / length if length > 0 else 0.0
        neighbours[new] = set(around)
        for other, cosine in zip(around, (units[around] @ units[new]).tolist(), strict=True):
            neighbours[other] -= {a, b}
            neighbours[other].add(new)
            heapq.heappush(queue, (-cosine, other, new))
        pairs.append((a, b))
        likeness.append(-cost)
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), torch.tensor(likeness, dtype=torch.float64)


def levels(of: list[int | None]) -> list[int]:
    """How deep each instance lies, from its parents: 0 a whole, 1 a part, 2 a part of a part, and so on.

    Example:
        >>> levels([None, 0, 1, None])
        [0, 1, 2, 0]
    """
    depths = []
    for parent in of:
        depth = 0
        while parent is not None:
            depth, parent = depth + 1, of[parent]
        depths.append(depth)
    return depths


def _owners(n: int, pairs: Int[Tensor, "T 2"]) -> Int[Tensor, "N"]:
    """The region that each of ``n`` patches is in after the given merges."""
    owner = np.arange(n + len(pairs))
    # From the last region to the first: a region's owner is known before those of what it was made of.
    for index in range(len(pairs) - 1, -1, -1):
        owner[pairs[index].numpy()] = owner[n + index]
    return torch.from_numpy(owner[:n])
