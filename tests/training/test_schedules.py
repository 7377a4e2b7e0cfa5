"""Schedules are those of a plain table, value by value."""

import numpy as np
import pytest

from figureground.training.schedules import cosine, warmup_steps


@pytest.mark.parametrize(
    ("start", "end", "steps", "warmup", "warmup_start"),
    [(1.0, 0.002, 40, 10, 0.0), (0.04, 0.4, 25, 0, 0.0), (0.996, 1.0, 30, 1, 0.5), (2.0, 0.0, 12, 12, 0.1)],
)
def test_cosine_is_the_table(start: float, end: float, steps: int, warmup: int, warmup_start: float) -> None:
    ramp = np.linspace(warmup_start, start, warmup)
    angles = np.pi * np.arange(steps - warmup) / max(steps - warmup, 1)
    table = np.concatenate([ramp, end + (start - end) / 2 * (1 + np.cos(angles))])
    schedule = cosine(start, end, steps, warmup, warmup_start)
    assert [schedule(step) for step in range(steps)] == pytest.approx(table.tolist(), rel=1e-12, abs=1e-15)
    assert schedule(steps + 7) == end


@pytest.mark.parametrize(("warmup", "factor"), [(5, 0.001), (0, 0.001), (12, 0.5)])
def test_warmup_steps_is_the_plain_loop(warmup: int, factor: float) -> None:
    schedule = warmup_steps([8, 10, 15], 0.2, warmup, factor)
    height = 1.0
    for step in range(20):
        if step in (8, 10, 15):
            height *= 0.2
        ramp = factor + (1 - factor) * step / warmup if step < warmup else 1.0
        assert schedule(step) == pytest.approx(height * ramp, rel=1e-12)
