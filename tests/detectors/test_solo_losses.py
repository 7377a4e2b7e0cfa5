"""FreeSOLO's losses against references that take one pixel at a time."""

import pytest
import torch

from figureground.detectors.solo_losses import (
    average_projection_loss,
    category_loss,
    colour_affinity,
    embedding_loss,
    max_projection_loss,
    pairwise_loss,
)
from tests.reference import solo as reference

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(3, 7, 9, generator=GENERATOR)
TARGETS = torch.rand(3, 7, 9, generator=GENERATOR) > 0.6
LAB = 2 * torch.randn(3, 7, 9, generator=GENERATOR)


@pytest.mark.parametrize(("function", "average"), [(max_projection_loss, False), (average_projection_loss, True)])
def test_projections(function, average):
    found = function(LOGITS.sigmoid(), TARGETS.float())
    expected = [
        reference.projections(logits, target, average)
        for logits, target in zip(LOGITS.tolist(), TARGETS.float().tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dilation", [1, 2])
def test_pairs_of_one_colour(dilation):
    valid = torch.ones(7, 9, dtype=torch.bool)
    valid[5:], valid[:, 8] = False, False
    affinity = colour_affinity(LAB, valid, dilation)
    expected = reference.affinity(LAB.tolist(), valid.tolist(), dilation)
    torch.testing.assert_close(affinity, torch.tensor(expected))
    weights = torch.tensor([1.0, 0.5, 2.0])
    alike = affinity >= 0.3
    total, count = pairwise_loss(LOGITS, alike, TARGETS, weights, dilation)
    each = [
        reference.pairwise(logits, expected, inside, 0.3, dilation)
        for logits, inside in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True)
    ]
    assert int(count) == sum(number for _, number in each) > 20
    assert float(total) == pytest.approx(sum(w * own for w, (own, _) in zip(weights.tolist(), each, strict=True)))
    unweighted, _ = pairwise_loss(LOGITS, alike, TARGETS, dilation=dilation)
    assert float(unweighted) == pytest.approx(sum(own for own, _ in each))


def test_sure_masks_are_finite():
    logits = torch.tensor([[[300.0, -200.0]]], requires_grad=True)
    alike = torch.zeros(8, 1, 2, dtype=torch.bool)
    alike[4, 0, 0] = True
    total, count = pairwise_loss(logits, alike, torch.ones(1, 1, 2, dtype=torch.bool), dilation=1)
    total.backward()
    assert (float(total.detach()), int(count)) == (200.0, 1)
    assert logits.grad.tolist() == [[[0.0, -1.0]]]


def test_categories():
    logits = torch.randn(5, 2, generator=GENERATOR)
    positive = torch.tensor([[1, 0], [0, 0], [0, 1], [0, 0], [1, 0]])
    weights = torch.tensor([0.5, 1.0, 1.0, 1.0, 2.0])
    expected = sum(
        weights[i].item() * reference.focal(logits[i, k].item(), bool(positive[i, k]))
        for i in range(5)
        for k in range(2)
    )
    assert float(category_loss(logits, positive.float(), weights, 3)) == pytest.approx(expected / 4, rel=1e-5)


def test_embeddings():
    targets = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    loss = embedding_loss(torch.tensor([[5.0, 0.0], [1.0, 1.0]]), targets, torch.tensor([1.0, 0.5]))
    assert float(loss) == pytest.approx(0.5 * (1 - 0.5**0.5) / 2)
    assert float(embedding_loss(-targets, targets, torch.ones(2))) == pytest.approx(2)


def test_losses_of_nothing_are_zero_and_connected():
    masks, embeddings = torch.zeros(0, 4, 4, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    none = torch.zeros(0, 4, 4)
    total, count = pairwise_loss(masks, torch.zeros(8, 4, 4).bool(), none.bool())
    for function in (max_projection_loss, average_projection_loss):
        total = total + function(masks.sigmoid(), none).sum()
    total = total + embedding_loss(embeddings, torch.zeros(0, 3), torch.zeros(0))
    assert total == 0
    assert count == 0
    total.backward()
    assert masks.grad is not None
    assert embeddings.grad is not None
