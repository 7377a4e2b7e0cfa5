"""Integer cells packed into one integer each, so that sorting finds the distinct ones and their neighbours."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int, Int32
from torch import Tensor


def strides(extent: Sequence[int]) -> list[int]:
    """Weights that turn a cell with coordinate ``i`` in ``[0, extent[i])`` into a distinct integer, last axis fastest.

    Args:
        extent: Number of values of each coordinate, at least 1 each.

    Raises:
        ValueError: If the cells are too many for 62 bits: two of them would share a key.

    Example:
        >>> strides([7, 5, 3])
        [15, 3, 1]
    """
    if math.prod(extent) >= 2**62:
        raise ValueError(f"A grid of {'x'.join(map(str, extent))} cells does not fit 62 bits; widen the kernel.")
    return [math.prod(extent[axis + 1 :]) for axis in range(len(extent))]


def distinct(keys: Int[Tensor, "*shape"]) -> tuple[Int[Tensor, " V"], Int32[Tensor, "*shape"]]:
    """Return the distinct keys in rising order and, for each key, its place among them."""
    rising, order = keys.flatten().sort(stable=True)
    values, place = rising.unique_consecutive(return_inverse=True)
    return values, torch.empty_like(place, dtype=torch.int32).scatter_(0, order, place.int()).view(keys.shape)


def neighbours(keys: Int[Tensor, " V"], step: int) -> Int32[Tensor, "V+1 2"]:
    """Find, for each of the rising ``keys``, the places of ``key - step`` and of ``key + step``; V if absent.

    The last row is that of the absent key: its neighbours are absent, so that a chain of look-ups may go through it.
    """
    absent = len(keys)
    wanted = keys + step
    place = torch.searchsorted(keys, wanted)
    found = keys.take(place.clamp(max=absent - 1)) == wanted
    place = torch.where(found, place, absent)
    beside = torch.full((absent + 1, 2), absent, dtype=torch.int32, device=keys.device)
    beside[:-1, 1] = place
    beside[:, 0].scatter_(0, place, torch.arange(absent, dtype=torch.int32, device=keys.device))
    beside[-1] = absent
    return beside
