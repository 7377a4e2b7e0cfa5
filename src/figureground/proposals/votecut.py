"""VoteCut: many cuts propose, masks that agree make a cluster, and each cluster votes on its pixels.

Arica, Rubin, Gershov, Laufer: CuVLER: Enhanced unsupervised object discoveries through exhaustive self-supervised
transformers. CVPR 2024. Written from the paper.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from figureground.config import Config
from figureground.ops.components import label_components
from figureground.ops.masks import mask_iou, masks_to_boxes
from figureground.proposals.interface import Method, to_instances
from figureground.spectral import cosine_affinity, smallest_eigenvectors
from figureground.structures import Instances, PatchFeatures

_PIVOT_ROUNDS = 5
_ROWS_AT_ONCE = 256


class VoteCutConfig(Config):
    """Who votes, and how votes are counted."""

    taus: tuple[float, ...] = Field(
        default=(0.15,),
        min_length=1,
        description="Cosines above which two patches are joined, one cut each (paper: 0.15).",
    )
    eps: float = Field(default=1e-5, gt=0, lt=1, description="Weight of all other pairs (paper: 1e-5).")
    eigenvectors: int = Field(default=1, ge=1, le=32, description="Vectors used of each cut (paper: 1).")
    clusters: tuple[int, ...] = Field(
        default=(2, 3), min_length=1, description="Numbers of clusters each vector is divided into (paper: 2, 3)."
    )
    corners: int = Field(
        default=2, ge=1, le=5, description="Image corners from which on a cluster is background (paper: 2; 5 never)."
    )
    max_components: int = Field(
        default=30, ge=1, description="Components above which a cluster is noise (published code: 30)."
    )
    min_side: int = Field(
        default=5, ge=1, description="Patches; a box both narrower and shorter is dropped (published code: 5)."
    )
    overlap: float = Field(default=0.6, gt=0, lt=1, description="IoU above which two masks agree (paper: 0.6).")
    majority: float = Field(
        default=0.2, ge=0, lt=1, description="Share of a cluster above which a patch is in its mask (paper: 0.2)."
    )
    max_masks: int = Field(default=10, ge=1, description="Clusters kept, largest first (published code: 10).")


class VoteCut(Method):
    """Cuts at several thresholds, or of several backbones, vote on the objects of an image.

    The score is the share of all divisions (one for each vector and number of clusters) that agree on a mask. A
    division has at most one mask in a cluster: two that do not overlap cannot both agree with a third.

    Reference:
        Arica et al., CVPR 2024, section 3.1. Six backbones vote in the paper: give their features to
        :meth:`propose_all`. Deviates in both presets: vectors are those of the generalised problem (the published code
        leaves out D^-1/2), K-means of one dimension is solved exactly instead of from random starts, and masks meet on
        the first backbone's map instead of on 60 x 60. In ``default``, for a single backbone, several thresholds vote
        in the place of backbones, and objects may reach into two image corners.
    """

    PRESETS: ClassVar = {
        "default": VoteCutConfig(taus=(0.0, 0.15, 0.3), corners=3),
        "reference": VoteCutConfig(),
    }

    config: VoteCutConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the pixels are not looked at."""
        return self.propose_all([features])

    def propose_all(self, features: Sequence[PatchFeatures]) -> list[Instances]:
        """Let several backbones vote together.

        Args:
            features: Of the same batch of images, one entry for each backbone; maps may differ in size.

        Returns:
            Instances on the map of the first backbone.

        Raises:
            ValueError: If there are no features, or the batches differ in length.
        """
        if not features:
            raise ValueError("At least one backbone has to vote.")
        maps = zip(*(entry.values for entry in features), strict=True)
        return [self._propose_one(list(values)) for values in maps]

    def _propose_one(self, maps: list[Float[Tensor, "_h _w _D"]]) -> Instances:
        h, w = maps[0].shape[:2]
        proposed = torch.cat([_on_map(self._masks(values), (h, w)) for values in maps])
        proposed = proposed[proposed.flatten(1).any(1)]
        divisions = len(maps) * len(self.config.taus) * self.config.eigenvectors * len(self.config.clusters)
        masks, scores = [], []
        for members in agreeing_clusters(proposed, self.config.overlap)[: self.config.max_masks]:
            mask = proposed[members].float().mean(0) > self.config.majority
            if bool(mask.any()):  # members may have no patch in common
                masks.append(mask)
                scores.append(min(len(members) / divisions, 1.0))
        return to_instances(masks, scores, maps[0][..., 0])

    def _masks(self, values: Float[Tensor, "h w D"]) -> Bool[Tensor, "M h w"]:
        """What one backbone proposes, in the order of thresholds, vectors and clusters."""
        h, w = values.shape[:2]
        proposed = [torch.zeros((0, h, w), dtype=torch.bool, device=values.device)]
        for tau in self.config.taus:
            affinity = cosine_affinity(values.reshape(h * w, -1), tau=tau, eps=self.config.eps)
            for vector in smallest_eigenvectors(affinity, self.config.eigenvectors)[1]:
                # A vector that a small map does not have is zero and abstains.
                for count in self.config.clusters if bool(vector.any()) else ():
                    clusters = cluster_line(vector, count).reshape(h, w)
                    proposed += [self._components(clusters == number) for number in range(count)]
        return torch.cat(proposed)

    def _components(self, cluster: Bool[Tensor, "h w"]) -> Bool[Tensor, "M h w"]:
        config = self.config
        labels = label_components(cluster[None])[0]
        count = int(labels.max())
        if int(cluster[[0, 0, -1, -1], [0, -1, 0, -1]].sum()) >= config.corners or count > config.max_components:
            count = 0
        masks = labels == torch.arange(1, count + 1, device=labels.device)[:, None, None]
        boxes = masks_to_boxes(masks)
        return masks[(boxes[:, 2:] - boxes[:, :2] >= config.min_side).any(1)]


def agreeing_clusters(masks: Bool[Tensor, "M h w"], overlap: float) -> list[Int[Tensor, "_K"]]:
    """Group masks by agreement with a pivot; each mask is in one group, the most popular pivot is first.

    A pivot is the mask with most neighbours (IoU above ``overlap``), then, a few times, the member of its own group
    with the largest sum of IoUs to the group. Of equal ones the first is taken.
    """
    iou = mask_iou(masks, masks)
    near = iou > overlap
    left = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
    groups = []
    while bool(left.any()):
        pivot = int(((near & left).sum(1) * left).argmax())
        members = torch.nonzero(near[pivot] & left).flatten()
        for _ in range(_PIVOT_ROUNDS):
            better = int(members[iou[members][:, members].sum(1).argmax()])
            if better == pivot:
                break
            pivot = better
            members = torch.nonzero(near[pivot] & left).flatten()
        groups.append(members)
        left[members] = False
    return sorted(groups, key=len, reverse=True)


def cluster_line(values: Float[Tensor, "N"], count: int) -> Int[Tensor, "N"]:
    """The best K-means clustering of numbers: 0 for the lowest cluster, up to ``count - 1``.

    Clusters of numbers are intervals, so the best cuts of the sorted numbers are found by dynamic programming. Where
    there are fewer different numbers than clusters, there are fewer clusters.

    Reference:
        Wang and Song: Ckmeans.1d.dp, The R Journal 2011.
    """
    ordered, order = values.double().sort(stable=True)
    ordered = ordered - ordered.mean()
    n = len(ordered)
    count = min(count, len(ordered.unique()))
    sums = functional.pad(ordered.cumsum(0), (1, 0))
    squares = functional.pad(ordered.square().cumsum(0), (1, 0))
    position = torch.arange(n + 1, device=values.device)

    # best[j]: cost of the first j numbers in as many clusters as so far; their last cluster begins at begins[...][j].
    best = torch.where(position > 0, squares - sums.square() / position.clamp(min=1), torch.inf)
    begins = []
    for level in range(2, count + 1):
        rows = []
        # Of the last level only the whole is asked for.
        asked = position[n:] if level == count else position
        for ends in asked.split(_ROWS_AT_ONCE):
            size = ends[:, None] - position
            cost = squares[ends][:, None] - squares - (sums[ends][:, None] - sums).square() / size.clamp(min=1)
            rows.append(torch.where(size > 0, best + cost, torch.inf).min(1))
        best = torch.cat([row.values for row in rows])
        begins.append(torch.cat([row.indices for row in rows]))
    labels = torch.zeros(n, dtype=torch.int64, device=values.device)
    end = n
    for begin in reversed(begins):
        end = int(begin[min(end, len(begin) - 1)])
        labels[order[end:]] += 1
    return labels


def _on_map(masks: Bool[Tensor, "M h w"], size: tuple[int, int]) -> Bool[Tensor, "M H W"]:
    if len(masks) == 0:
        return masks.new_zeros((0, *size))
    return functional.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0.5
