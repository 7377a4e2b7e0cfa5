import numpy as np
import pytest
import torch

from figureground.proposals import create
from figureground.proposals.lost import correlations, degrees, expand
from figureground.structures import PatchFeatures
from tests.reference import discovery


def features(h: int, w: int, seed: int) -> PatchFeatures:
    values = torch.randn(1, h, w, 6, generator=torch.Generator().manual_seed(seed))
    return PatchFeatures(values, 8, (h * 8, w * 8))


@pytest.mark.parametrize("seed", range(6))
def test_is_the_plain_loop(seed: int) -> None:
    given = features(7, 9, seed)
    first, mask = discovery.lost(given.values[0].numpy(), k=15)
    [found] = create("lost", k=15).propose(given)
    np.testing.assert_array_equal(found.masks[0].numpy(), mask)
    assert found.masks[0].flatten()[first]
    degree = degrees(correlations(given.values[0]))
    assert found.scores[0].item() == pytest.approx(1 - degree[first].item() / 62)


def test_expansion_from_a_given_seed() -> None:
    values = features(6, 6, 1).values[0]
    order = degrees(correlations(values)).sort(stable=True).indices
    _, mask = discovery.lost(values.numpy(), k=10, seed=20, order=order.tolist())
    np.testing.assert_array_equal(expand(correlations(values), 20, order[:10], (6, 6)).numpy(), mask)


def test_patches_like_nothing_are_no_object() -> None:
    values = torch.zeros(1, 5, 5, 3)
    [found] = create("lost").propose(PatchFeatures(values, 8, (40, 40)))
    assert len(found) == 0


def test_lengths_count_only_in_the_sum() -> None:
    # Doubling all features changes no sign.
    given = features(6, 8, 3)
    doubled = PatchFeatures(given.values * 2, 8, given.image_size)
    [one], [two] = create("lost").propose(given), create("lost").propose(doubled)
    assert torch.equal(one.masks, two.masks)
