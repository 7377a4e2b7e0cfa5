import numpy as np
import pytest
import torch

from figureground.ops.masks import mask_parents
from figureground.proposals import create
from figureground.proposals.hac import agglomerate, levels
from figureground.structures import PatchFeatures
from tests.reference import discovery


@pytest.mark.parametrize("threshold", [0.5, 0.2, -0.2])
def test_partitions_are_those_of_the_plain_loop(threshold: float) -> None:
    values = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0))
    owner = discovery.agglomerate(values.numpy(), threshold)
    expected = {(owner == region).tobytes() for region in np.unique(owner) if (owner == region).sum() > 1}
    method = create("hac", "reference", thresholds=(threshold,), corners=5)
    [found] = method.propose(PatchFeatures(values[None], 8, (48, 56)))
    assert {mask.numpy().tobytes() for mask in found.masks} == expected
    # Together with single patches they cover the map once.
    assert int(found.masks.sum(0).max()) == 1


def test_a_region_of_several_levels_comes_once() -> None:
    values = torch.randn(1, 8, 8, 4, generator=torch.Generator().manual_seed(1))
    [found] = create("hac", corners=5).propose(PatchFeatures(values, 8, (64, 64)))
    assert len({mask.numpy().tobytes() for mask in found.masks}) == len(found)


def test_every_patch_ends_in_one_region() -> None:
    values = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(2))
    pairs, likeness = agglomerate(values)
    assert len(pairs) == len(likeness) == 19
    # Each region but the last is merged exactly once.
    assert sorted(pairs.flatten().tolist()) == list(range(38))
    pairs, likeness = agglomerate(values[:1, :1])
    assert pairs.shape == (0, 2)
    assert len(likeness) == 0


def test_parts_know_their_wholes() -> None:
    masks = torch.zeros(5, 10, 10, dtype=torch.bool)
    masks[0, :8] = True
    masks[1, :4] = True
    masks[2, :4, :3] = True
    masks[3, 9:] = True
    masks[4] = masks[2]
    of = mask_parents(masks)
    # The smallest holder counts; two of one extent do not hold each other.
    assert of == [None, 0, 1, None, 1]
    assert levels(of) == [0, 1, 2, 0, 2]
    assert mask_parents(masks[:0]) == []


def test_an_object_and_its_parts_are_related() -> None:
    values = torch.zeros(1, 12, 12, 3)
    values[..., 0] = 1
    values[0, 2:10, 2:6] = torch.tensor([0.0, 1.0, 0.6])
    values[0, 2:10, 6:10] = torch.tensor([0.0, -0.3, 1.0])
    [found] = create("hac").propose(PatchFeatures(values, 8, (96, 96)))
    assert [mask.sum().item() for mask in found.masks] == [64, 32, 32]
    assert mask_parents(found.masks) == [None, 0, 0]
