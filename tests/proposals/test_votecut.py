import itertools

import numpy as np
import pytest
import torch

from figureground.ops.masks import mask_iou
from figureground.proposals.votecut import VoteCut, agreeing_clusters, cluster_line
from figureground.structures import PatchFeatures
from tests.proposals.test_contract import scene


def cost(values: np.ndarray, labels: np.ndarray) -> float:
    return sum(float(((part - part.mean()) ** 2).sum()) for part in (values[labels == k] for k in set(labels.tolist())))


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", range(2))
def test_clusters_of_a_line_are_the_best_there_are(count: int, seed: int) -> None:
    values = torch.randn(7, generator=torch.Generator().manual_seed(seed))
    numbers = values.double().numpy()
    best = min(cost(numbers, np.array(labels)) for labels in itertools.product(range(count), repeat=7))
    labels = cluster_line(values, count)
    assert cost(numbers, labels.numpy()) == pytest.approx(best)
    # Numbered from low to high, without gaps.
    assert labels[values.argsort()].diff().min() >= 0
    assert labels.unique().tolist() == list(range(count))


def test_lines_longer_than_one_block_and_lines_of_few_numbers() -> None:
    values = torch.cat([torch.zeros(500), torch.ones(300), torch.full((100,), 5.0)])
    values = values[torch.randperm(900, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(cluster_line(values, 3), (values > 0.5).long() + (values > 3).long())
    assert torch.equal(cluster_line(values, 5), cluster_line(values, 3))
    assert cluster_line(torch.ones(4), 3).tolist() == [0] * 4
    assert cluster_line(torch.ones(1), 2).tolist() == [0]


def test_masks_that_agree_come_together() -> None:
    masks = torch.zeros(6, 10, 10, dtype=torch.bool)
    masks[0, :5] = masks[2, :5] = masks[4, :4] = True
    masks[1, 6:] = masks[3, 6:] = True
    masks[5, :, 3] = True
    groups = [group.tolist() for group in agreeing_clusters(masks, 0.6)]
    assert groups == [[0, 2, 4], [1, 3], [5]]
    assert agreeing_clusters(masks[:0], 0.6) == []


def test_a_share_of_the_cluster_makes_the_mask() -> None:
    # Two of three agree on the fifth row.
    class Given(VoteCut):
        def _masks(self, values):
            masks = torch.zeros(3, 10, 10, dtype=torch.bool)
            masks[:, :4] = True
            masks[:2, 4] = True
            return masks

    features = PatchFeatures(torch.ones(1, 10, 10, 2), 8, (80, 80))
    for majority, rows in ((0.2, 5), (0.5, 5), (0.7, 4)):
        method = Given(VoteCut.PRESETS["reference"].replace(majority=majority, taus=(0.1, 0.2)))
        [found] = method.propose(features)
        assert found.boxes[0].tolist() == [0, 0, 10, rows]
        assert found.scores[0].item() == 0.75  # three of two cuts x one vector x two divisions


def test_several_backbones_vote_on_the_map_of_the_first() -> None:
    coarse, _, truth = scene()
    fine = PatchFeatures(coarse.values.repeat_interleave(2, 1).repeat_interleave(2, 2), 4, coarse.image_size)
    [together] = VoteCut(VoteCut.PRESETS["reference"]).propose_all([coarse, fine])
    assert mask_iou(together.masks[:1], truth).item() > 0.9
    [finer] = VoteCut(VoteCut.PRESETS["reference"]).propose_all([fine, coarse])
    assert finer.masks.shape[1:] == (28, 40)
    with pytest.raises(ValueError, match="At least one backbone"):
        VoteCut(VoteCut.PRESETS["reference"]).propose_all([])
