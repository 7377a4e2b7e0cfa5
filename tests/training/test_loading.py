"""Batches are functions of the seed and the step, whoever makes them."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from figureground.errors import ConfigError, ImageError
from figureground.training import distributed
from figureground.training.distributed import World
from figureground.training.loading import batches_of
from figureground.training.order import batch_indices, generator_for


@dataclass(frozen=True)
class Example:
    """The index, the draw, a random number of the draw, and the threads; none from draw ``broken`` on."""

    broken: int = 1000

    def __call__(self, index: int, draw: int) -> Tensor:
        if draw >= self.broken:
            raise ImageError(f"Draw {draw} cannot be read.", "Look at it.")
        noise = torch.rand(1, generator=generator_for(0, "noise", draw), dtype=torch.float64)
        return torch.cat([torch.tensor([index, draw, torch.get_num_threads()], dtype=torch.float64), noise])


def first(batches: Iterator[Tensor], count: int) -> list[Tensor]:
    return list(islice(batches, count))


def test_the_order_is_that_of_the_steps_and_every_draw_has_its_number() -> None:
    batches = batches_of(Example(), 7, 3, seed=5, collate=torch.stack)
    drawn = first(batches(0), 9)
    for step, batch in enumerate(drawn):
        assert batch[:, 0].tolist() == batch_indices(7, 3, step, seed=5)
        assert batch[:, 1].tolist() == [3 * step, 3 * step + 1, 3 * step + 2]
    assert torch.equal(torch.stack(first(batches(4), 5)), torch.stack(drawn[4:]))


def test_without_a_collation_a_batch_is_a_list() -> None:
    [batch] = islice(batches_of(Example(), 4, 2, seed=0)(0), 1)
    assert isinstance(batch, list)
    assert [tuple(each.shape) for each in batch] == [(4,), (4,)]


def test_ranks_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = first(batches_of(Example(), 7, 6, seed=5, collate=torch.stack)(2), 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "_world", World(rank, 3))
        parts.append(first(batches_of(Example(), 7, 6, seed=5, collate=torch.stack)(2), 3))
    assert all(torch.equal(torch.cat(each), batch) for each, batch in zip(zip(*parts, strict=True), whole, strict=True))
    with pytest.raises(ConfigError, match="batch of 8 cannot be shared evenly by 3"):
        batches_of(Example(), 7, 8, seed=5)


# On a machine of one core.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
def test_workers_make_the_same_and_an_error_is_itself() -> None:
    before = torch.get_rng_state()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, files[1]))
    here, theirs = (
        batches_of(Example(broken=22), 7, 3, seed=5, workers=workers, collate=torch.stack)(1) for workers in (0, 2)
    )
    made = first(theirs, 6)
    # Each tensor of a batch that waits is an open file.
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 512
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    # All but the threads, which are this process's own business.
    for own, other in zip(first(here, 6), made, strict=True):
        assert torch.equal(own[:, [0, 1, 3]], other[:, [0, 1, 3]])
        assert (other[:, 2] == 1).all()
    for batches in (here, theirs):
        with pytest.raises(ImageError) as caught:
            next(batches)
        assert (caught.value.message, caught.value.remedy) == ("Draw 22 cannot be read.", "Look at it.")
    assert torch.equal(torch.get_rng_state(), before)


LARGE = """
import multiprocessing
from figureground.training.loading import batches_of

def large(index, draw):
    return bytes(100_000)

if __name__ == "__main__":
    batches = batches_of(large, 9, 2, 0, workers=1)(0)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    input()
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """Also one with more to hand over than a pipe takes."""
    (tmp_path / "large.py").write_text(LARGE)
    command = [sys.executable, str(tmp_path / "large.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    assert len(workers) == 1
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    process.communicate()
    assert not alive
