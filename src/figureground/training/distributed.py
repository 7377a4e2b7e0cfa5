"""Several processes that train one model together, as ``torchrun`` starts them; a process alone is a world of one."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from figureground.errors import ConfigError, RunError, UsageError

P = ParamSpec("P")
T = TypeVar("T")

# The others wait while the first one looks at the model or writes; a rank that died is torchrun's to find, not this.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: Of this process, from 0.
        size: How many there are.
        device: Where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0


_world = World()


def world() -> World:
    """That of this process; of one process outside :func:`joined`."""
    return _world


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that ``torchrun`` has started, for as long as the block runs.

    Without ``torchrun``, or with one process, nothing is started. A block inside another joins the same processes. A
    rank that fails must end: ``torchrun`` then ends the others, which wait for it. With NCCL it does not take leave of
    them first, for it would wait until they do so too; with gloo it must: a process that ends inside a group aborts.

    Args:
        device: ``cpu`` (gloo, one thread a process unless ``OMP_NUM_THREADS`` is set), or ``cuda`` (NCCL, one GPU a
            process, that of its ``LOCAL_RANK``).

    Raises:
        UsageError: If there are fewer GPUs than processes on this machine, or the device is of another kind.
    """
    global _world
    before = _world
    if before.size > 1:
        yield before
        return
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ
    _world = _join(device) if started else World(device=device)
    failed = True
    try:
        yield _world
        failed = False
    finally:
        on_gpu, _world = torch.device(_world.device).type == "cuda", before
        if started and not (failed and on_gpu):
            _leave(failed)


def _leave(failed: bool) -> None:
    if not failed:
        # Whoever is first would else close its ends of the connections while another still reads from them.
        dist.barrier()
    # A caught error keeps the frames it went through, and in them what holds the group open.
    gc.collect()
    dist.destroy_process_group()


def _join(device: str) -> World:
    rank, size, place = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    kind = torch.device(device).type
    if kind == "cuda":
        if place >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started process {place + 1} on a machine with {torch.cuda.device_count()} GPUs.",
                "Choose --nproc-per-node no larger than that.",
            )
        device = f"cuda:{place}"
        torch.cuda.set_device(place)
        dist.init_process_group("nccl", timeout=_PATIENCE, device_id=torch.device(device))
    elif kind == "cpu":
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        dist.init_process_group("gloo", timeout=_PATIENCE)
    else:
        raise UsageError(f"Several processes cannot train together on {device!r}.", "Choose --device cpu or cuda.")
    return World(rank, size, device)


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, computed in float32 or better; in one process: nothing."""

    def mean(flat: Tensor) -> None:
        dist.all_reduce(flat)
        flat.div_(_world.size)

    _each_kind(tensors, mean, lambda dtype: torch.promote_types(dtype, torch.float32))


def sum_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the ranks."""
    _each_kind(tensors, dist.all_reduce)


def broadcast_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by that of rank 0."""
    _each_kind(tensors, lambda flat: dist.broadcast(flat, 0))


def _each_kind(
    tensors: Sequence[Tensor],
    collective: Callable[[Tensor], object],
    computed: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype,
) -> None:
    """Run a collective once for each dtype and device, on all such tensors in one; in the same order on every rank."""
    if _world.size == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((computed(tensor.dtype), tensor.device), []).append(tensor.detach())
    for (dtype, _), alike in kinds.items():
        flat = torch.cat([tensor.reshape(-1).to(dtype) for tensor in alike])
        collective(flat)
        for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def gather(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, one after another along the first dimension; no gradient flows through.

    Args:
        tensor: Of the same shape on every rank, with at least one dimension.
    """
    if _world.size == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(_world.size)]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def barrier() -> None:
    """Wait until every rank is here."""
    if _world.size > 1:
        dist.barrier()


def on_first(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Do something on rank 0 alone, while the others wait.

    Returns:
        What came of it on rank 0; ``None`` on the others.

    Raises:
        RunError: On the others, where it failed: rank 0 raises the error itself.
    """
    if _world.size == 1:
        return action(*args, **kwargs)
    result, failed = None, torch.ones(1, device=_world.device)
    try:
        if _world.first:
            result = action(*args, **kwargs)
            failed.zero_()
    finally:
        broadcast_([failed])
    if failed.item() and not _world.first:
        raise RunError("The first process has stopped, and this one with it.", "The first one's message says why.")
    return result


def share(indices: Sequence[T]) -> Sequence[T]:
    """This rank's part of a batch, the parts one after another.

    Raises:
        ConfigError: If the parts would not be of one size.
    """
    part, rest = divmod(len(indices), _world.size)
    if rest:
        raise ConfigError(
            f"A batch of {len(indices)} cannot be shared evenly by {_world.size} processes.",
            f"Choose a batch size that {_world.size} divides, such as {(part + 1) * _world.size}.",
        )
    return indices[_world.rank * part : (_world.rank + 1) * part]
