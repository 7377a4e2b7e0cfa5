import numpy as np
import pytest
import torch

from figureground.proposals import create
from figureground.proposals.found import background_similarity, head_weights
from figureground.structures import PatchFeatures
from tests.proposals.test_contract import scene
from tests.reference import discovery


@pytest.mark.parametrize("weighted", [True, False])
def test_is_the_plain_loop(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 8, 12, generator=generator) + 0.5
    attention = torch.rand(3, 48, generator=generator) ** 3
    expected = discovery.found_background(values.numpy(), attention.numpy(), 0.3, weighted)
    similarity = background_similarity(values, attention, weight_heads=weighted)
    np.testing.assert_array_equal(similarity.numpy() > 0.3, expected)


def test_single_is_the_largest_of_multi() -> None:
    features, _, _ = scene(objects=2, w=24)
    features.values[0, 6, 14] = features.values[0, 0, 0]
    [several] = create("found").propose(features)
    [single] = create("found", instances="single").propose(features)
    assert len(several) == 2
    assert len(single) == 1
    assert single.masks[0].sum() == several.masks.flatten(1).sum(1).max()


def test_specks_are_dropped_by_default_only() -> None:
    features, _, _ = scene()
    features.values[0, 1, 1] = features.values[0, 5, 5]
    [kept], [published] = create("found").propose(features), create("found", "reference").propose(features)
    assert (len(kept), len(published)) == (1, 2)


def test_a_head_that_attends_to_nothing_keeps_a_finite_weight() -> None:
    attention = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.8, 0.1]])
    assert torch.isfinite(head_weights(attention)).all()
    assert head_weights(attention)[0] > head_weights(attention)[1]
    assert torch.isfinite(head_weights(torch.full((2, 3), 0.25))).all()


def test_attention_decides_on_the_seed() -> None:
    features, _, truth = scene()
    away = torch.where(truth.flatten(1), 0.0, 1.0).expand(2, -1)
    looking_away = PatchFeatures(features.values, 8, features.image_size, away[None])
    [found] = create("found", "reference").propose(looking_away)
    # The square is attended to least, so it is the background and the rest the object.
    assert not (found.masks.any(0) & truth[0]).any()


def test_features_and_heads_have_to_fit() -> None:
    features = PatchFeatures(torch.ones(1, 2, 2, 5), 8, (16, 16), torch.rand(1, 2, 4))
    with pytest.raises(ValueError, match="width 5 do not divide among 2"):
        create("found").propose(features)


def test_nothing_stands_out_of_a_constant_map() -> None:
    for value in (0.0, 1.0):
        [found] = create("found").propose(PatchFeatures(torch.full((1, 4, 5, 3), value), 8, (32, 40)))
        assert len(found) == 0
