"""The order of the data and every random draw, as functions of a seed and a number: there is no state to save."""

import hashlib
from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor


def generator_for(*key: int | str) -> torch.Generator:
    """A generator of its own for a key such as ``(seed, "crop", step)``; another key is another stream.

    Example:
        >>> torch.equal(torch.rand(3, generator=generator_for(0, 7)), torch.rand(3, generator=generator_for(0, 7)))
        True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The examples of a step: every epoch takes each of them once, in an order of its own.

    A batch may reach over the end of an epoch, so that all are of one size.

    Args:
        count: How many examples there are.
        batch_size: How many a step takes.
        step: From 0.
        seed: Of the run.

    Example:
        >>> sorted(batch_indices(6, 3, 0, seed=0) + batch_indices(6, 3, 1, seed=0))
        [0, 1, 2, 3, 4, 5]
    """
    indices: list[int] = []
    while len(indices) < batch_size:
        epoch, first = divmod(step * batch_size + len(indices), count)
        indices += _order(count, seed, epoch)[first : first + batch_size - len(indices)].tolist()
    return indices


# A step may reach into the next epoch; an order is drawn once, not once a step.
@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Int64[Tensor, "count"]:
    return torch.randperm(count, generator=generator_for(seed, "order", epoch))
