"""The contrast against the formulas of the paper, one by one."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from figureground.config import build
from figureground.detectors.exemplar_contrast import ExemplarContrastConfig, exemplar_contrast
from figureground.errors import ConfigError
from tests.reference import exemplar as slow

# By cosine: 1, 0.6, 0, -0.8 and -1 to the first axis.
POOL = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, -0.6], [-1.0, 0.0]])
FIRST = torch.tensor([[2.0, 0.0]])


def contrast(embeddings: Tensor, pool: Tensor, **settings: Any) -> float:
    return float(exemplar_contrast(embeddings, pool, ExemplarContrastConfig(**settings)))


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 6),
    exemplars=st.integers(0, 6),
    width=st.integers(1, 4),
    beta=st.floats(-0.99, 0.99),
    gap=st.floats(0, 1),
    tau=st.floats(0.05, 2),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_slow_one(
    count: int, exemplars: int, width: int, beta: float, gap: float, tau: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 3 * torch.randn(count, width, generator=generator, dtype=torch.float64)
    pool = torch.randn(exemplars, width, generator=generator, dtype=torch.float64)
    # A cosine of 1 is not always 1 to the last digit.
    alpha = min(0.99, beta + gap)
    expected, terms = slow.contrast(embeddings.numpy(), pool.numpy(), alpha, beta, tau)
    each = {"alpha": alpha, "beta": beta, "tau": tau}
    assert contrast(embeddings, pool, **each, reduction="sum") == pytest.approx(expected, rel=1e-6, abs=1e-7)
    mean = sum(terms) / len(terms) if terms else 0
    assert contrast(embeddings, pool, **each, reduction="mean") == pytest.approx(mean, rel=1e-6, abs=1e-7)


def test_one_by_hand() -> None:
    """Positives 1 and 0.6, the mean of two log-ratios; negatives 0, -0.8 and -1, the mean of three exponentials."""
    neg = (math.exp(0) + math.exp(-0.8 / 0.5) + math.exp(-1 / 0.5)) / 3
    expected = sum(-math.log(math.exp(cosine / 0.5) / (math.exp(cosine / 0.5) + neg)) for cosine in (1, 0.6)) / 2
    assert contrast(FIRST, POOL, alpha=0.5, beta=0.3, tau=0.5) == pytest.approx(expected, rel=1e-6)
    # In between is neither: an exemplar of cosine 0.4 changes nothing.
    wider = torch.cat([POOL, torch.tensor([[0.4, math.sqrt(1 - 0.16)]])])
    assert contrast(FIRST, wider, alpha=0.5, beta=0.3, tau=0.5) == pytest.approx(expected, rel=1e-6)
    # The published weight is left to the caller.
    assert contrast(FIRST, POOL, alpha=0.5, beta=0.3, tau=0.5, weight=7) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("embeddings", "pool"),
    [
        (FIRST, POOL[2:]),  # no positive
        (FIRST, POOL[:2]),  # no negative
        (FIRST, POOL[:1]),  # one exemplar, positive
        (FIRST, POOL[-1:]),  # one exemplar, negative
        (FIRST, POOL[:0]),
        (FIRST[:0], POOL),
        (torch.zeros(1, 2), POOL),
    ],
)
def test_where_nothing_counts_it_is_a_connected_zero(embeddings: Tensor, pool: Tensor) -> None:
    embeddings = embeddings.clone().requires_grad_()
    for reduction in ("sum", "mean"):
        loss = exemplar_contrast(embeddings, pool, ExemplarContrastConfig(reduction=reduction))
        [gradient] = torch.autograd.grad(loss, embeddings)
        assert float(loss.detach()) == 0
        assert not gradient.any()


def test_what_does_not_count_stands_in_nobodys_way() -> None:
    """Of one batch, with and without positives; the gradient is that of differences."""
    embeddings = torch.tensor([[1.0, 0.2], [-0.1, -1.0], [0.2, -0.05], [0.5, 1.0]], dtype=torch.float64)
    embeddings.requires_grad_()
    config = ExemplarContrastConfig(alpha=0.9, beta=-0.5)
    assert torch.autograd.gradcheck(lambda e: exemplar_contrast(e, POOL.double(), config), embeddings)
    [gradient] = torch.autograd.grad(exemplar_contrast(embeddings, POOL.double(), config), embeddings)
    assert gradient.any(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_in_the_input_only(dtype: torch.dtype) -> None:
    """Logits of up to 1 / tau = 1000 are computed in float32, and nothing overflows."""
    generator = torch.Generator().manual_seed(0)
    embeddings, pool = (torch.randn(20, 8, generator=generator).to(dtype) for _ in range(2))
    each: Any = {"alpha": 0.3, "beta": 0.2, "tau": 1e-3}
    expected = contrast(embeddings.double(), pool.double(), **each)
    given = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = exemplar_contrast(given, pool, ExemplarContrastConfig(**each))
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert given.grad is not None
    assert given.grad.isfinite().all()


def test_it_teaches_to_be_like_the_positive() -> None:
    embedding = torch.tensor([[0.8, 0.62]], requires_grad=True)
    pool = torch.tensor([[1.0, 0.0], [0.1, 1.0]])
    config = ExemplarContrastConfig(alpha=0.75, beta=0.72)
    before = float(torch.cosine_similarity(embedding, pool[:1]).detach())
    optimiser = torch.optim.SGD([embedding], lr=0.05)
    for _ in range(30):
        optimiser.zero_grad()
        exemplar_contrast(embedding, pool, config).backward()
        optimiser.step()
    assert float(torch.cosine_similarity(embedding, pool[:1]).detach()) > before + 0.1


def test_thresholds_in_the_wrong_order() -> None:
    with pytest.raises(ConfigError, match="beta no greater than alpha"):
        build(ExemplarContrastConfig, {"alpha": 0.2, "beta": 0.4})
    assert ExemplarContrastConfig().weight == 1.3
