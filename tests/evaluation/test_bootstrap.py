import numpy as np
import pytest

from figureground.evaluation.bootstrap import Estimate, bootstrap_difference, bootstrap_mean, estimate, resample


def test_draws() -> None:
    counts = resample(50, 400, np.random.default_rng(0))
    assert counts.shape == (400, 50)
    assert (counts.sum(1) == 50).all()
    # An image is left out of a resample with probability (1 - 1/n)^n.
    assert (counts == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(0).random(40)
    first, second, other = (bootstrap_mean(values, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_coverage() -> None:
    """Of 300 samples about 95 % of the intervals hold the true mean; a skewed distribution loses a little."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        interval = bootstrap_mean((rng.random(100) < 0.3).astype(float), rng, 300)
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= 0.3 <= interval.high
    assert 0.91 < held / 300 < 0.98


def test_paired_differences_are_narrower() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(80)
    left, right = hard + 0.05 + 0.01 * rng.normal(size=80), hard
    difference = bootstrap_difference(left, right, rng)
    assert difference.low is not None
    assert difference.high is not None
    assert 0.04 < difference.low < 0.05 < difference.high < 0.06
    alone = bootstrap_mean(left, rng)
    assert (alone.high or 0) - (alone.low or 0) > 5 * (difference.high - difference.low)


def test_what_is_not_defined() -> None:
    rng = np.random.default_rng(0)
    assert bootstrap_mean(np.zeros(0), rng) == Estimate(None)
    assert bootstrap_mean(np.ones(3), rng, resamples=0) == Estimate(1.0)
    assert estimate(0.5, np.array([np.nan, 0.5])) == Estimate(0.5, 0.5, 0.5)
    assert estimate(None, np.array([np.nan])) == Estimate(None)
    assert Estimate(0.5, 0.25).scaled(100.0) == Estimate(50.0, 25.0, None)
