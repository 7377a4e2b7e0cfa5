import pytest
import torch

from figureground.ops.nms import matrix_nms
from tests.reference import discovery


def random_masks(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 8, (count, 2), generator=generator)
    masks = torch.zeros(count, 14, 14, dtype=torch.bool)
    for mask, (top, left) in zip(masks, corners.tolist(), strict=True):
        mask[top : top + 5, left : left + 6] = True
    return masks


@pytest.mark.parametrize("seed", range(4))
def test_is_the_plain_loop(seed: int) -> None:
    masks = random_masks(12, seed)
    # A few ties among the scores.
    scores = torch.randint(1, 6, (12,), generator=torch.Generator().manual_seed(seed)) / 6
    expected = discovery.matrix_nms(masks.numpy(), scores.double().tolist(), sigma=2.0)
    assert matrix_nms(masks, scores).tolist() == pytest.approx(expected, abs=1e-6)


def test_what_is_known_in_advance() -> None:
    masks = torch.zeros(3, 4, 8, dtype=torch.bool)
    masks[:2, :, :4] = True
    masks[2, :, 4:] = True
    scores = torch.tensor([0.5, 0.9, 0.8])
    assert torch.allclose(matrix_nms(masks, scores), torch.tensor([0.5 * 0.1353353, 0.9, 0.8]))
    assert torch.allclose(matrix_nms(masks, scores, kernel="linear"), torch.tensor([0.0, 0.9, 0.8]))
    # Of different kinds: nobody suppresses anybody.
    assert torch.equal(matrix_nms(masks, scores, labels=torch.tensor([1, 2, 1])), scores)
    three = torch.ones(3, 4, 4, dtype=torch.bool)
    assert torch.isfinite(matrix_nms(three, scores, kernel="linear")).all()


def test_none_and_empty_masks() -> None:
    assert matrix_nms(torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0)).shape == (0,)
    scores = torch.tensor([0.3, 0.4])
    assert torch.equal(matrix_nms(torch.zeros(2, 4, 4, dtype=torch.bool), scores), scores)
