import pytest
import torch

from figureground.ops.masks import mask_iou
from figureground.proposals import create
from figureground.structures import PatchFeatures
from tests.proposals.test_contract import scene


def test_default_finds_both_objects_and_ends() -> None:
    features, pixels, truth = scene(objects=2, w=24)
    [found] = create("maskcut", max_masks=8).propose(features, pixels)
    overlaps = mask_iou(found.masks, truth)
    assert (overlaps.amax(0) > 0.9).all()
    # No patch is given to two objects.
    assert int(found.masks.sum(0).max()) == 1


def test_default_does_not_find_a_region_again() -> None:
    # One large object and a structureless rest: the case in which zeroed features are found a second time.
    values = torch.full((1, 12, 12, 4), 0.01)
    values[..., 0] = 1
    values[0, 1:-1, 1:-1] = torch.tensor([0.01, 1, 0, 0])
    features = PatchFeatures(values, 8, (96, 96))
    [found] = create("maskcut").propose(features)
    overlaps = mask_iou(found.masks, found.masks) - torch.eye(len(found))
    assert overlaps.max() == 0


def test_tokencut_with_several_vectors() -> None:
    features, _, _ = scene(objects=3, w=30)
    [found] = create("tokencut", eigenvectors=3).propose(features)
    assert len(found) == 3


@pytest.mark.parametrize("removal", ["zero", "nodes"])
def test_the_background_prior_picks_the_figure_whatever_the_removal(removal: str) -> None:
    # The ground is a thin ring, so that the entry of largest magnitude lies in it, and no corner rule corrects that.
    figure = torch.zeros(14, 20, dtype=torch.bool)
    figure[1:-1, 1:-1] = True
    values = torch.eye(4)[figure.long()][None]
    pixels = torch.where(figure, 0.9, 0.1).repeat_interleave(8, 0).repeat_interleave(8, 1).expand(1, 3, -1, -1)
    features = PatchFeatures(values, 8, (112, 160))
    found = {
        rule: create("maskcut", removal=removal, corners=5, figure=rule).propose(features, pixels)[0]
        for rule in ("corners", "background")
    }
    assert torch.equal(found["background"].masks[0], figure)
    assert not torch.equal(found["corners"].masks[0], figure)
