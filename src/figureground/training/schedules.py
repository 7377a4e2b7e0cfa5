"""Rates, weight decays and momenta as functions of the step."""

import math
from collections.abc import Callable, Sequence


def cosine(start: float, end: float, steps: int, warmup: int = 0, warmup_start: float = 0.0) -> Callable[[int], float]:
    """From ``start`` to ``end`` along half a cosine, after a linear warm-up.

    Args:
        start: The value right after the warm-up.
        end: The value after the last step, which comes one step's width close to it; kept ever after.
        steps: In all, those of the warm-up included.
        warmup: Steps from ``warmup_start`` to ``start``, both of which are taken.
        warmup_start: The value of step 0 where there is a warm-up.

    Reference:
        Caron et al.: Emerging properties in self-supervised vision transformers. ICCV 2021, section 3.2; its rate,
        weight decay and teacher's momentum. The ends are those of its released code.

    Example:
        >>> momentum = cosine(0.996, 1, 100)
        >>> momentum(0), momentum(50), momentum(100)
        (0.996, 0.998, 1.0)
    """

    def value(step: int) -> float:
        if step < warmup:
            return warmup_start + (start - warmup_start) * step / max(warmup - 1, 1)
        done = min((step - warmup) / max(steps - warmup, 1), 1)
        return end + (start - end) * (1 + math.cos(math.pi * done)) / 2

    return value


def warmup_steps(milestones: Sequence[int], gamma: float, warmup: int, warmup_factor: float) -> Callable[[int], float]:
    """1 at first, times ``gamma`` from each milestone on; before, linearly from ``warmup_factor``.

    Args:
        milestones: Steps from which the value is lower.
        gamma: What it is multiplied by at each.
        warmup: Steps until the whole value is reached; none: it is there at once.
        warmup_factor: What the value of step 0 is multiplied by.

    Reference:
        Goyal et al.: Accurate, large minibatch SGD. 2017, section 2.2, as detectors are commonly trained.

    Example:
        >>> rate = warmup_steps([100, 200], 0.1, warmup=10, warmup_factor=0.001)
        >>> rate(0), rate(10), rate(100)
        (0.001, 1.0, 0.1)
    """

    def value(step: int) -> float:
        ramp = min(step / warmup, 1) if warmup else 1
        return (warmup_factor * (1 - ramp) + ramp) * gamma ** sum(step >= milestone for milestone in milestones)

    return value
