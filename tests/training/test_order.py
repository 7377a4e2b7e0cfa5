"""Order and draws come from the seed and a number alone."""

import pytest
import torch

from figureground.training.order import batch_indices, generator_for


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (3, 10), (7, 7), (1, 4), (12, 4)])
def test_every_epoch_takes_each_once(count: int, batch_size: int) -> None:
    drawn = [index for step in range(4 * count) for index in batch_indices(count, batch_size, step, seed=1)]
    epochs = [drawn[first : first + count] for first in range(0, len(drawn), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count == 1 or len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_needs_no_step_before_it() -> None:
    assert batch_indices(100, 8, 30, seed=0) == batch_indices(100, 8, 30, seed=0)
    assert batch_indices(100, 8, 30, seed=0) != batch_indices(100, 8, 30, seed=1)


def test_every_key_has_a_stream_of_its_own() -> None:
    keys = [(0,), (0, 0), (0, 1), (1, 0), (10,), (0, "crop"), ("0",), (0, "crop", 1)]
    assert len({tuple(torch.rand(2, generator=generator_for(*key)).tolist()) for key in keys}) == len(keys)
    # Frozen: a run that was begun with an older version goes on with the same data.
    assert generator_for(0, "order", 0).initial_seed() == 1_864_822_792_221_289_227


def test_an_order_is_drawn_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    real = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **kwargs: drawn.append(args) or real(*args, **kwargs))
    for step in range(9):
        batch_indices(50, 15, step, seed=977)
    assert len(drawn) == 3
