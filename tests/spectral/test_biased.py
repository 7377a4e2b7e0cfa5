import numpy as np
import pytest
import torch

from figureground.spectral import biased_cut
from tests.spectral.test_ncut import random_affinity


def test_it_is_the_minimum() -> None:
    affinity = random_affinity(30, 0).double()
    prior = torch.rand(30, generator=torch.Generator().manual_seed(1)).double()
    x = biased_cut(affinity, prior, 0.4)
    degree = affinity.sum(1)

    def energy(y: torch.Tensor) -> float:
        cut = (affinity * (y[:, None] - y[None]).square()).sum() / 2
        return float(cut + 0.4 * (degree * (y - prior).square()).sum())

    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        assert energy(x) <= energy(x + 0.01 * torch.randn(30, generator=generator).double())
    assert prior.min() <= x.min() <= x.max() <= prior.max()


def test_a_strong_prior_is_returned_and_a_batch_is_its_graphs() -> None:
    stack = torch.stack([random_affinity(20, seed) for seed in range(2)])
    prior = torch.rand(2, 20, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(biased_cut(stack, prior, 1e5), prior, atol=1e-3)
    together = biased_cut(stack, prior)
    for one, affinity, p in zip(together, stack, prior, strict=True):
        np.testing.assert_allclose(one, biased_cut(affinity, p), atol=1e-6)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="positive"):
        biased_cut(torch.ones(3, 3), torch.ones(3), 0)
    with pytest.raises(ValueError, match="isolated"):
        biased_cut(torch.zeros(3, 3), torch.ones(3))
