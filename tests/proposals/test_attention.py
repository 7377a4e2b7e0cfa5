import pytest
import torch

from figureground.errors import UsageError
from figureground.proposals import create
from figureground.structures import PatchFeatures


def looking(maps: torch.Tensor) -> PatchFeatures:
    heads, h, w = maps.shape
    return PatchFeatures(torch.ones(1, h, w, 2), 8, (h * 8, w * 8), maps.reshape(1, heads, h * w))


def test_the_fewest_patches_with_the_mass() -> None:
    attention = torch.tensor([[[0.05, 0.05, 0.10, 0.30, 0.35, 0.15]]])
    [found] = create("attention").propose(looking(attention))
    assert found.masks[0].tolist() == [[False, False, False, True, True, False]]
    assert found.scores[0].item() == pytest.approx(0.65 - 2 / 6)
    [most] = create("attention", mass=0.9).propose(looking(attention))
    assert most.masks[0].tolist() == [[False, False, True, True, True, True]]
    [everything] = create("attention", mass=1.0).propose(looking(attention))
    assert everything.masks.all()


def test_the_largest_component_even_if_it_is_the_last_or_only_one() -> None:
    attention = torch.zeros(1, 4, 6)
    attention[0, 0, 0] = 0.2
    attention[0, 2:4, 3:6] = 0.13
    [found] = create("attention").propose(looking(attention))
    assert found.boxes[0].tolist() == [3, 2, 6, 4]
    attention[0, 0, 0] = 0
    [only] = create("attention").propose(looking(attention))
    assert only.boxes[0].tolist() == [3, 2, 6, 4]


def test_heads() -> None:
    maps = torch.zeros(6, 1, 8)
    for head in range(6):
        maps[head, 0, head] = 1
    [fourth] = create("attention", preset="reference").propose(looking(maps))
    assert fourth.boxes[0].tolist() == [4, 0, 5, 1]
    [mean] = create("attention").propose(looking(maps))
    assert mean.boxes[0].tolist() == [0, 0, 6, 1]


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(UsageError, match="needs a backbone with a CLS token"):
        create("attention").propose(PatchFeatures(torch.ones(1, 2, 2, 3), 8, (16, 16)))
    with pytest.raises(UsageError, match="no attention head 4: the backbone has 3"):
        create("attention", "reference").propose(looking(torch.rand(3, 2, 2)))
    for bad in (float("nan"), -0.1):
        with pytest.raises(ValueError, match="finite and not negative"):
            create("attention").propose(looking(torch.full((1, 2, 2), bad)))


def test_no_attention_at_all_finds_nothing() -> None:
    [found] = create("attention").propose(looking(torch.zeros(2, 3, 3)))
    assert len(found) == 0
