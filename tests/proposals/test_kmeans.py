import itertools

import pytest
import torch

from figureground.ops.masks import mask_iou
from figureground.proposals import create
from figureground.proposals.kmeans import bisecting_clusters, two_means
from figureground.structures import PatchFeatures


def cost(points: torch.Tensor, side: torch.Tensor) -> float:
    halves = [points[side == 1], points[side == 0]]
    return sum(float((half - half.mean(0)).square().sum()) for half in halves if len(half))


@pytest.mark.parametrize("seed", range(8))
def test_two_means_against_all_splits(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(10, 3, generator=generator)
    points[:4] += 3
    best = min(cost(points, torch.tensor((1, *rest))) for rest in itertools.product((0, 1), repeat=9))
    side = two_means(points)
    assert side is not None
    assert side[0] == 1
    # K-means stops at a minimum among neighbours; with two heaps it is near the best there is.
    assert cost(points, side) <= 1.1 * best


def test_two_means_of_few_or_equal_points() -> None:
    assert two_means(torch.ones(1, 3)) is None
    assert two_means(torch.ones(50, 3) * 0.1) is None
    side = two_means(torch.eye(2))
    assert side is not None
    assert side.tolist() == [1, 0]


def test_bisecting_keeps_every_cluster() -> None:
    centres = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1.0]])
    points = centres.repeat_interleave(5, 0) + 0.01 * torch.randn(15, 3, generator=torch.Generator().manual_seed(0))
    met = [set(torch.nonzero(cluster).flatten().tolist()) for cluster in bisecting_clusters(points, 3)]
    assert met[0] == set(range(15))
    assert set(range(10)) in met
    assert [set(range(10, 15)) in met, set(range(5)) in met, set(range(5, 10)) in met] == [True] * 3
    assert len(met) == 5
    # Halves as alike as these stay together.
    assert len(bisecting_clusters(points, 3, max_similarity=0.8)) == 3
    assert len(bisecting_clusters(points, 1)) == 1


def test_two_kinds_of_object_in_one_figure_come_apart() -> None:
    # Side by side and alike enough to be one figure; in front of a ground that is like neither.
    values = torch.zeros(1, 14, 24, 3)
    values[..., 0] = 1
    values[0, 4:10, 4:12] = torch.tensor([-0.6, 1.0, 0])
    values[0, 4:10, 12:20] = torch.tensor([-0.6, 0, 1.0])
    values = values + 0.02 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    [found] = create("kmeans").propose(PatchFeatures(values, 8, (112, 192)))
    truth = torch.zeros(3, 14, 24, dtype=torch.bool)
    truth[0, 4:10, 4:20] = truth[1, 4:10, 4:12] = truth[2, 4:10, 12:20] = True
    assert (mask_iou(truth, found.masks).amax(1) > 0.95).all()
    # The whole comes before its parts.
    assert mask_iou(truth[:1], found.masks).argmax() == 0
