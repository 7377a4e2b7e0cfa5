import torch

from figureground.ops.masks import mask_iou
from figureground.proposals import create
from figureground.proposals.promerge import ProMerge, grid, sides_touched
from figureground.structures import PatchFeatures
from tests.proposals.test_contract import scene


def test_prompts_lie_in_the_middle_of_their_cells() -> None:
    assert len(grid(60, 60, 4)) == 225
    assert grid(8, 6, 4).tolist() == [2 * 6 + 2, 6 * 6 + 2]
    assert grid(1, 2, 4).tolist() == [1]
    assert grid(3, 3, 1).tolist() == list(range(9))


def test_sides() -> None:
    masks = torch.zeros(4, 6, 8, dtype=torch.bool)
    masks[1, :, :] = True
    masks[2, :3, 0] = True
    masks[3, 0, :3] = True
    # Half of the left side is enough, three of eight at the top are not.
    assert sides_touched(masks, 0.5).tolist() == [0, 4, 1, 0]


def method(**config) -> ProMerge:
    return ProMerge(ProMerge.PRESETS["reference"].replace(**config))


def test_parts_are_large_next_to_the_prompted_one_and_come_once() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 1:4, 1:4] = True
    mask[0, 5:7, 1:4] = True
    mask[0, 7, 7] = True
    both = method()._parts(mask.expand(2, -1, -1), torch.tensor([9, 10]))
    assert [int(part.sum()) for part in both] == [9, 6]
    # From the speck everything else is large.
    assert [int(part.sum()) for part in method()._parts(mask, torch.tensor([63]))] == [9, 6, 1]


def test_merging() -> None:
    unit = torch.zeros(64, 3)
    unit[:, 0] = 1
    unit[:24, 1] = 5  # the upper three rows are of another kind
    unit = torch.nn.functional.normalize(unit, dim=1)
    large, inside, beside, strange = torch.zeros(4, 8, 8, dtype=torch.bool)
    large[3:7] = True
    inside[5:8, 0:2] = True  # two thirds inside: merges whatever it is
    beside[6:8, 2:3] = True  # half inside, and of its kind: merges
    strange[0:4, 6] = True  # a quarter inside, mostly of the other kind
    every = [strange, inside, beside, large]
    assert [int(mask.sum()) for mask in method(alike=0.6)._merged(every, unit)] == [32 + 2 + 1, 4]
    assert len(method(alike=-1.0)._merged(every, unit)) == 1
    assert len(method(merge_alike=0.9, merge=0.9)._merged(every, unit)) == 4


def test_no_background_no_objects() -> None:
    features, _, truth = scene()
    [nothing] = create("promerge", min_background=0.9).propose(features)
    assert len(nothing) == 0
    [found] = create("promerge").propose(features)
    assert mask_iou(found.masks[:1], truth).item() > 0.9


def test_a_mirrored_image_has_mirrored_objects() -> None:
    features, _, truth = scene(objects=2)
    flipped = PatchFeatures(features.values.flip(2), 8, features.image_size)
    [found], [mirrored] = create("promerge").propose(features), create("promerge").propose(flipped)
    assert mask_iou(found.masks, truth).amax(0).min() > 0.9
    assert mask_iou(found.masks, mirrored.masks.flip(2)).amax(1).min() > 0.9
