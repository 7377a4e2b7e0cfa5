"""Percentile bootstrap over images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure and its 95 % interval.

    Attributes:
        value: ``None`` where the measure is not defined: no such object in the truth.
        low: ``None`` where no interval was asked for.
        high: As ``low``.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return Estimate(*(None if part is None else part * factor for part in (self.value, self.low, self.high)))


def resample(count: int, resamples: int, generator: np.random.Generator) -> Int[np.ndarray, "S I"]:
    """How often each of ``count`` images is drawn in each resample, of ``count`` draws with replacement.

    The same counts for two methods make their difference a paired one.

    Example:
        >>> resample(5, 2, np.random.default_rng(0)).sum(1).tolist()
        [5, 5]
    """
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples)


def estimate(value: float | None, draws: Float[np.ndarray, "S"], level: float = 0.95) -> Estimate:
    """A measure with the percentile interval of its resampled values; NaN among them (not defined) is left out.

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    defined = draws[~np.isnan(draws)]
    if value is None or not len(defined):
        return Estimate(value)
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    return Estimate(value, float(low), float(high))


def bootstrap_mean(
    values: Float[np.ndarray, "I"], generator: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> Estimate:
    """Mean of one value per image with its interval.

    Args:
        values: One per image; none at all gives an undefined mean.
        generator: Decides the draws.
        resamples: 0 gives no interval.
        level: Of the interval, in (0, 1).

    Example:
        >>> bootstrap_mean(np.array([0.5, 0.5]), np.random.default_rng(0))
        Estimate(value=0.5, low=0.5, high=0.5)
    """
    if not len(values):
        return Estimate(None)
    draws = resample(len(values), resamples, generator) @ values / len(values)
    return estimate(float(values.mean()), draws, level)


def bootstrap_difference(
    left: Float[np.ndarray, "I"],
    right: Float[np.ndarray, "I"],
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Mean of ``left - right`` over the same images with its interval: two methods differ where it leaves out 0."""
    return bootstrap_mean(left - right, generator, resamples, level)
