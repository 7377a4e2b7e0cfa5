"""Two processes under torchrun do what one does with the same batches; this file is also what they run."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from figureground.errors import ConfigError, RunError, UsageError
from figureground.storage import jsonlines
from figureground.training import distributed
from figureground.training.distributed import World, joined, share, world
from figureground.training.ema import Ema
from figureground.training.loading import batches_of
from figureground.training.loop import StepReport, train
from figureground.training.order import generator_for

STEPS = 6


def example(index: int, draw: int) -> Tensor:
    return torch.rand(5, generator=generator_for("example", index, draw), dtype=torch.float64)


class Run:
    """A trunk that all examples use, a branch for a few of them, one that none uses, and a teacher."""

    def __init__(self, out: Path, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        self.out, self.dtype = out, dtype
        parts = {name: nn.Linear(5, 1) for name in ("trunk", "branch", "idle")}
        self.model = nn.ModuleDict(parts).to(dtype)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator_for(seed, name), dtype=torch.float64))
        self.student = self.model["trunk"]
        self.teacher = self.model["teacher"] = Ema(self.student)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.1)
        self.alone = 0

    def losses(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        batch = batch.to(self.dtype)
        some = batch[:, 0] > 0.8
        self.alone += bool(some.any())
        taught = (self.student(batch) - self.teacher(batch)).square().mean()
        # Each call of a part of the model is one that no wrapper around the whole would see.
        branch = self.model["branch"](batch[some]).square().sum() / len(batch) if some.any() else taught * 0
        return {"trunk": (self.student(batch)[:, 0] - batch.sum(1)).square().mean(), "taught": taught, "branch": branch}

    def train(self, steps: int = STEPS, **options: Any) -> list[StepReport]:
        reports: list[StepReport] = []
        chosen = options.pop("losses", self.losses)
        options = {"max_norm": 2.0, "clip": "each", "progress": reports.append, "checkpoint_every": 2, **options}
        batches = batches_of(example, 10, 4, seed=0, collate=torch.stack)
        train(
            self.model,
            chosen,
            batches,
            self.optimiser,
            lambda step: 0.9**step,
            steps,
            self.out,
            batch_size=4,
            after_update=lambda step: self.teacher.update(0.9),
            **options,
        )
        return reports

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def spoilt(self, rank: int) -> Any:
        """Losses that are NaN at step 2 on one rank."""

        def losses(batch: Tensor, step: int) -> dict[str, Tensor]:
            bad = math.nan if step == 2 and world().rank == rank else 1
            return {name: value * bad for name, value in self.losses(batch, step).items()}

        return losses


# What each of the two processes does. The tests are below.


def collapse(step: int) -> dict[str, float]:
    if step == 3:
        raise RunError("It has collapsed.")
    return {"step": step}


def message(run: Run, **options: Any) -> str:
    try:
        run.train(**options)
    except RunError as error:
        return error.message
    return "no error"


def collectives(me: World) -> dict[str, Any]:
    rank = float(me.rank)
    half, whole = torch.full((2,), 60_000.0, dtype=torch.float16), torch.full((2, 2), rank).T
    numbers, flags = torch.tensor([2**40 + me.rank]), torch.tensor([me.first, True])
    parameter = nn.Parameter(torch.full((2,), rank))
    distributed.mean_([half, whole, parameter])
    distributed.sum_([numbers])
    gathered = distributed.gather(torch.tensor([[rank, 5.0]]).T.requires_grad_())
    distributed.broadcast_([flags, kept := torch.full((2,), rank + 3)])
    distributed.barrier()
    return {
        "mean": [half.tolist(), whole.tolist(), parameter.tolist()],
        "sum": numbers.tolist(),
        "gathered": [gathered.tolist(), gathered.requires_grad],
        "broadcast": [flags.tolist(), kept.tolist()],
        "share": list(share("abcd")),
        "on_first": distributed.on_first(lambda: "done"),
    }


def two_ranks(out: Path) -> None:
    with joined("cpu") as me:
        found: dict[str, Any] = {"world": [me.rank, me.size, me.device], "threads": torch.get_num_threads()}
        weights: dict[str, dict[str, Tensor]] = {}
        for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
            # Only rank 0 begins with the right weights.
            run = Run(out / name, dtype, seed=me.rank)
            found[name] = [report.losses for report in run.train()]
            weights[name] = run.weights()
        found["steps with the branch"] = run.alone
        found["idle has state"] = run.model["idle"].weight in run.optimiser.state
        run = Run(out / "spoilt")
        run.train(losses=run.spoilt(rank=1))
        weights["spoilt"] = run.weights()
        Run(out / "resumed").train(3)
        run = Run(out / "resumed", seed=9)
        run.train()
        weights["resumed"] = run.weights()
        found["watch"] = message(Run(out / "watch"), watch=collapse, watch_every=2)
        (out / "full").mkdir(exist_ok=True)
        (out / "full" / "checkpoints").touch()
        found["write"] = message(Run(out / "full"))
        found["other folder"] = message(Run(out / "resumed" if me.first else out / "nothing"))
        run = Run(out / "stuck")
        found["stuck"] = message(
            run, losses=lambda batch, step: {"a": run.student(batch.double()).sum() * math.nan}, patience=2
        )
        found["collectives"] = collectives(me)
        torch.save(weights, out / f"{me.rank}.pt")
        (out / f"{me.rank}.json").write_text(json.dumps(found))
    assert world() == World()


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", __name__, str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr[-3000:]
    return out


def both(out: Path, key: str) -> list[Any]:
    return [json.loads((out / f"{rank}.json").read_text())[key] for rank in (0, 1)]


def weights(out: Path, name: str) -> list[dict[str, Tensor]]:
    return [torch.load(out / f"{rank}.pt", weights_only=True)[name] for rank in (0, 1)]


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 0) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_two_ranks_are_one(name: str, tolerance: float, ranks: Path, tmp_path: Path) -> None:
    assert both(ranks, "world") == [[0, 2, "cpu"], [1, 2, "cpu"]]
    assert both(ranks, "threads") == [1, 1]
    one = Run(tmp_path, getattr(torch, name))
    expected = [report.losses for report in one.train()]
    # Only rank 0 reports, and of the whole batch.
    first, second = both(ranks, name)
    assert second == []
    assert [list(losses.values()) for losses in first] == [
        pytest.approx(list(losses.values()), rel=tolerance) for losses in expected
    ]
    for weight in weights(ranks, name):
        assert_same(weight, one.weights(), tolerance)
    first, second = weights(ranks, name)
    assert_same(first, second)
    assert [entry["step"] for entry in jsonlines.read(ranks / name / "log.jsonl")] == list(range(STEPS))


def test_a_part_that_few_examples_use(ranks: Path, tmp_path: Path) -> None:
    """It was used on one rank alone at some step, else this would not be seen; and a part that none uses is at rest."""
    first, second = both(ranks, "steps with the branch")
    assert {first, second} != {0, STEPS}
    assert 0 < first + second < 2 * STEPS
    assert both(ranks, "idle has state") == [False, False]
    before = Run(tmp_path).weights()
    for weight in weights(ranks, "float64"):
        assert torch.equal(weight["idle.weight"], before["idle.weight"])
        assert not torch.equal(weight["branch.weight"], before["branch.weight"])


def test_nan_on_one_rank_skips_the_step_on_both(ranks: Path, tmp_path: Path) -> None:
    one = Run(tmp_path)
    one.train(losses=one.spoilt(rank=0))
    for weight in weights(ranks, "spoilt"):
        assert_same(weight, one.weights(), 1e-12)
    assert [entry["skipped"] for entry in jsonlines.read(ranks / "spoilt" / "log.jsonl")] == [0, 0, 1, 1, 1, 1]


def test_resumed_is_undisturbed(ranks: Path) -> None:
    for resumed, calm in zip(weights(ranks, "resumed"), weights(ranks, "float64"), strict=True):
        assert_same(resumed, calm)


def test_an_error_on_the_first_ends_both(ranks: Path) -> None:
    stopped = "The first process has stopped, and this one with it."
    assert both(ranks, "watch") == ["It has collapsed.", stopped]
    entries = jsonlines.read(ranks / "watch" / "log.jsonl")
    assert [entry["watch"] for entry in entries if "watch" in entry] == [{"step": 1}]
    first, second = both(ranks, "write")
    assert "could not be written" in first
    assert second == stopped


def test_an_error_of_all_is_each_ones(ranks: Path) -> None:
    assert both(ranks, "other folder") == ["The processes found checkpoints of different steps: 6, 0."] * 2
    first, second = both(ranks, "stuck")
    assert "for 2 steps in a row" in first
    assert first == second


def test_collectives(ranks: Path) -> None:
    first, second = both(ranks, "collectives")
    assert (first.pop("share"), second.pop("share")) == (["a", "b"], ["c", "d"])
    assert (first.pop("on_first"), second.pop("on_first")) == ("done", None)
    assert first == second
    # Half-precision is averaged in float32: the sum would be infinite in its own.
    assert first["mean"] == [[60_000, 60_000], [[0.5, 0.5], [0.5, 0.5]], [0.5, 0.5]]
    assert first["sum"] == [2**41 + 1]
    assert first["gathered"] == [[[0], [5], [1], [5]], False]
    assert first["broadcast"] == [[True, True], [3, 3]]


class TestAlone:
    def test_nothing_is_started(self) -> None:
        with joined("cpu") as me:
            assert me == world() == World(0, 1, "cpu")
            assert me.first
            assert not torch.distributed.is_initialized()
            values = torch.arange(3.0)
            for collective in (distributed.mean_, distributed.sum_, distributed.broadcast_):
                collective([values])
            distributed.barrier()
            assert distributed.gather(values).tolist() == values.tolist() == [0, 1, 2]
            assert list(share([4, 5])) == [4, 5]
            assert distributed.on_first(math.hypot, 3, 4) == 5

    def test_torchrun_with_one_process_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}.items():
            monkeypatch.setenv(name, value)
        with joined("cuda:1") as me:
            assert me == world() == World(0, 1, "cuda:1")
        assert world() == World()

    def test_what_cannot_be_joined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(UsageError, match="process 3 on a machine with 2 GPUs"), joined("cuda"):
            pass
        with pytest.raises(UsageError, match="'mps'"), joined("mps"):
            pass
        assert world() == World()

    @pytest.mark.parametrize(("device", "leaves"), [("cuda", False), ("cpu", True)])
    def test_who_fails_does_not_wait_for_the_others(
        self, device: str, leaves: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
            monkeypatch.setenv(name, value)
        done: list[str] = []
        monkeypatch.setattr(distributed, "_join", lambda device: World(0, 2, device))
        monkeypatch.setattr(torch.distributed, "barrier", lambda: done.append("waited"))
        monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("left"))
        with pytest.raises(RunError, match="alone"), joined(device):
            raise RunError("It failed alone.")
        # NCCL would wait for the others; a gloo process that ends inside its group aborts.
        assert (world(), done) == (World(), ["left"] if leaves else [])
        done.clear()
        with joined(device) as me:
            assert me.size == 2
        assert (world(), done) == (World(), ["waited", "left"])

    def test_shares(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(distributed, "_world", World(1, 3))
        assert list(share(range(6))) == [2, 3]
        with pytest.raises(ConfigError, match="batch of 7 cannot be shared evenly by 3") as caught:
            share(range(7))
        assert "such as 9" in caught.value.remedy
