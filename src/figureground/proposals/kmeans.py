"""K-means instance masks (IMST): cut the figure from the ground, then bisect the figure's patches by K-means.

K-means for unsupervised instance self-supervised segmentation using a transformer. SSRN preprint, 2022. Written from
descriptions of it: neither code nor constants can be had. Bisecting: Steinbach, Karypis, Kumar: A comparison of
document clustering techniques. KDD workshop on text mining, 2000.
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
from figureground.spectral import cosine_affinity, smallest_eigenvectors
from figureground.structures import Instances, PatchFeatures

_MAX_STEPS = 100


class KMeansConfig(Config):
    """How the figure is cut out, and how far it is divided."""

    tau: float = Field(
        default=0.2, ge=-1, le=1, description="Cosine above which two patches are joined in the cut (TokenCut: 0.2)."
    )
    eps: float = Field(default=1e-5, gt=0, lt=1, description="Weight of all other pairs (TokenCut: 1e-5).")
    clusters: int = Field(default=4, ge=1, le=100, description="Clusters at most of the figure (paper: not known).")
    max_similarity: float = Field(
        default=1.0,
        ge=-1,
        le=1,
        description="Cosine between the centres of two halves from which on they stay one cluster; 1 always divides.",
    )
    min_area: float = Field(
        default=0.01, ge=0, lt=1, description="Components up to this share of the patches are dropped (MaskCut: 0.01)."
    )


class KMeans(Method):
    """The components of the figure, of its clusters, and of theirs.

    Every cluster of the bisection is kept, not the last ones alone: whether an object is a whole or one of its parts
    is not for K-means to say. The score is how unlike the ground a component is, (1 - cosine to the mean of the
    ground) / 2 on average, times its share of the figure: wholes come before their parts.

    Reference:
        IMST, SSRN 2022. The constants are ours in both presets, as is the start of each bisection: the two sides of
        the first principal component, so that nothing is drawn at random. The figure is the side of the cut with
        fewer image corners. ``default`` leaves a cluster whole whose halves are nearly the same.
    """

    PRESETS: ClassVar = {"default": KMeansConfig(max_similarity=0.6), "reference": KMeansConfig()}

    PARTS: ClassVar = True
    config: KMeansConfig

    def propose(self, features: PatchFeatures, images: Float[Tensor, "B 3 H W"] | None = None) -> list[Instances]:
        """See :class:`figureground.proposals.interface.Method`; the pixels are not looked at."""
        return [self._propose_one(values) for values in features.values]

    def _propose_one(self, values: Float[Tensor, "h w D"]) -> Instances:
        h, w = values.shape[:2]
        flat = values.flatten(0, 1).to(torch.promote_types(values.dtype, torch.float32))
        figure = self._figure(flat, (h, w))
        if not bool(figure.any()):
            return to_instances([], [], values[..., 0])
        unit = functional.normalize(flat, dim=1)
        clusters = bisecting_clusters(unit[figure.flatten()], self.config.clusters, self.config.max_similarity)
        # The ground is one side of a cut and never empty.
        contrast = (1 - unit @ functional.normalize(unit[~figure.flatten()].mean(0), dim=0)).clamp(0, 2) / 2
        masks: list[Tensor] = []
        scores = []
        for members in clusters:
            cluster = figure.masked_scatter(figure, members)
            for mask in self._components(cluster):
                if any(torch.equal(mask, other) for other in masks):
                    continue  # a component that a bisection did not touch
                masks.append(mask)
                scores.append(float(contrast[mask.flatten()].sum() / figure.sum()))
        return to_instances(masks, scores, values[..., 0])

    def _figure(self, flat: Float[Tensor, "N D"], shape: tuple[int, int]) -> Bool[Tensor, "h w"]:
        affinity = cosine_affinity(flat, tau=self.config.tau, eps=self.config.eps)
        vector = smallest_eigenvectors(affinity, 1)[1][0]
        side = (vector > vector.mean()).reshape(shape)
        # On a tie of two corners each, the side of the largest entry is the figure.
        return ~side if int(side[[0, 0, -1, -1], [0, -1, 0, -1]].sum()) > 2 else side

    def _components(self, cluster: Bool[Tensor, "h w"]) -> list[Bool[Tensor, "h w"]]:
        labels = label_components(cluster[None])[0]
        areas = labels.flatten().bincount()[1:]
        large = torch.nonzero(areas > self.config.min_area * labels.numel()).flatten()
        return [labels == number + 1 for number in large]


def bisecting_clusters(
    points: Float[Tensor, "P D"], count: int, max_similarity: float = 1.0
) -> list[Bool[Tensor, "P"]]:
    """Every cluster met on the way from one to ``count`` clusters, all points first.

    The cluster with the largest sum of squared distances to its centre is divided next (the first of equal ones).

    Args:
        points: Features of unit length.
        count: Clusters at most.
        max_similarity: Cosine between the centres of two halves from which on a cluster is left whole.
    """
    whole = torch.ones(len(points), dtype=torch.bool, device=points.device)
    met, divisible, finished = [whole], [whole], 0
    spreads = [_spread(points)]
    while divisible and len(divisible) + finished < count:
        index = spreads.index(max(spreads))
        cluster, _ = divisible.pop(index), spreads.pop(index)
        halves = two_means(points[cluster])
        if halves is None or _likeness(points[cluster], halves) >= max_similarity:
            finished += 1
            continue
        for half in (halves == 1, halves == 0):
            child = cluster.masked_scatter(cluster, half)
            met.append(child)
            divisible.append(child)
            spreads.append(_spread(points[child]))
    return met


def two_means(points: Float[Tensor, "P D"]) -> Int[Tensor, "P"] | None:
    """K-means with two clusters, 1 or 0 for each point; none where the points cannot be divided.

    Starts from the two sides of the first principal component, and ends when no point changes sides. A point as near
    to both centres goes to 0; the cluster of the first point is 1.
    """
    centred = points - points.mean(0)
    if float(centred.abs().amax()) <= 1e-5 * max(float(points.abs().amax()), 1e-30):
        return None  # all points are the same, but for rounding
    direction = torch.linalg.eigh(centred.mT @ centred)[1][:, -1]
    side = (centred @ direction > 0).long()
    for _ in range(_MAX_STEPS):
        ones, zeros = _centres(points, side)
        nearer = ((points - zeros).square().sum(1) > (points - ones).square().sum(1)).long()
        if torch.equal(nearer, side) or bool((nearer == nearer[0]).all()):
            break
        side = nearer
    return side if int(side[0]) == 1 else 1 - side


def _centres(points: Float[Tensor, "P D"], side: Int[Tensor, "P"]) -> tuple[Tensor, Tensor]:
    return points[side == 1].mean(0), points[side == 0].mean(0)


def _likeness(points: Float[Tensor, "P D"], side: Int[Tensor, "P"]) -> float:
    return float(functional.cosine_similarity(*_centres(points, side), dim=0))


def _spread(points: Float[Tensor, "P D"]) -> float:
    return float((points - points.mean(0)).square().sum())
