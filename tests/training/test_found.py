"""FOUND's losses are those of the paper."""

import numpy as np
import pytest
import torch

from figureground.refine.bilateral import BilateralSolverConfig
from figureground.structures import PatchFeatures
from figureground.training.found import FoundLossConfig, found_losses, refine
from tests.reference import found_head

EXACT = BilateralSolverConfig(cg_maxiter=1000, cg_tol=1e-12)


def example(seed: int) -> tuple[torch.Tensor, PatchFeatures, torch.Tensor]:
    """Logits, features with attention, and pictures of a square that is a little elsewhere than the logits say."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 4, 5, 12, generator=generator) + 0.5
    attention = torch.rand(2, 3, 20, generator=generator) ** 3
    logits = torch.randn(2, 4, 5, generator=generator) - 1
    logits[:, 1:3, 1:4] += 3
    images = torch.randint(90, 110, (2, 32, 40, 3), generator=generator, dtype=torch.uint8)
    images[:, 6:22, 10:30, 0] += 120
    return logits, PatchFeatures(values, 8, (32, 40), attention), images


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", [0, 99, 100])
def test_is_the_plain_loop(step: int, seed: int) -> None:
    logits, features, images = example(seed)
    assert features.cls_attention is not None
    found = found_losses(logits, features, images, step, FoundLossConfig(bilateral=EXACT))
    each = [
        found_head.losses(*(np.asarray(part) for part in parts), step)
        for parts in zip(logits.double(), features.values, features.cls_attention, images, strict=True)
    ]
    assert found.keys() == each[0].keys()
    for name, value in found.items():
        assert float(value) == pytest.approx(np.mean([image[name] for image in each]), rel=1e-5)


def test_only_the_prediction_is_pulled() -> None:
    """Targets are constants: the gradient is that of the cross-entropy with the masks held."""
    logits, features, images = example(0)
    logits.requires_grad_()
    config = FoundLossConfig(refined_weight=0, own_weight=1)
    found_losses(logits, features, images, 100, config)["own"].backward()
    assert logits.grad is not None
    # Its own mask makes it surer of what it says.
    inside = logits > 2
    assert (logits.grad[inside] < 0).all()


def test_a_refined_mask_that_is_another_is_not_used() -> None:
    _, _, images = example(0)
    speck = torch.zeros(2, 32, 40, dtype=torch.bool)
    speck[0, 10, 12] = True
    assert torch.equal(refine(images[0], speck, FoundLossConfig()), speck)
    square = torch.zeros(1, 32, 40, dtype=torch.bool)
    square[0, 7:24, 12:30] = True
    drawn = refine(images[0], square, FoundLossConfig())
    assert not torch.equal(drawn, square)
    assert torch.equal(refine(images[0], square, FoundLossConfig(min_iou=1)), square)


def test_without_attention_the_background_is_that_of_the_method() -> None:
    logits, features, images = example(0)
    bare = PatchFeatures(features.values, 8, (32, 40))
    losses = found_losses(logits, bare, images, 0, FoundLossConfig())
    assert losses.keys() == {"refined", "background"}
    assert all(torch.isfinite(value) for value in losses.values())
