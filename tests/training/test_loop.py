"""The loop: what a step does, resume to the bit, and what is not finite."""

import json
import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from figureground.errors import RunError, UsageError
from figureground.storage import jsonlines
from figureground.training import checkpoint
from figureground.training.checkpoint import Position
from figureground.training.ema import Ema
from figureground.training.loop import StepReport, train
from figureground.training.order import generator_for
from figureground.training.schedules import cosine

Losses = Callable[[Tensor, int], dict[str, Tensor]]
TIMES = ("images_per_s", "data_s")


def batches(step: int) -> Iterator[Tensor]:
    while True:
        yield torch.rand(4, 5, generator=generator_for(0, "batch", step))
        step += 1


def summed(losses: dict[str, Tensor]) -> Tensor:
    first, *rest = losses.values()
    return sum(rest, first)


class Run:
    """A small network on the way to predicting the mean of its input."""

    def __init__(self, out: Path, rate: float = 0.05) -> None:
        self.out = out
        generator = generator_for(0, "weights")
        first, last = nn.utils.skip_init(nn.Linear, 5, 3), nn.utils.skip_init(nn.Linear, 3, 1)
        self.model: Any = nn.Sequential(first, nn.Tanh(), last)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.network = self.model
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=rate)

    def losses(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        error = self.network(batch)[:, 0] - batch.mean(1)
        return {"square": error.square().mean(), "size": 0.01 * error.abs().mean()}

    def train(self, steps: int, losses: Losses | None = None, **options: Any) -> Position:
        options = {"batch_size": 4, "checkpoint_every": 4, **options}
        schedule = options.pop("schedule", lambda step: 0.9**step)
        chosen = losses or self.losses
        return train(self.model, chosen, batches, self.optimiser, schedule, steps, self.out, **options)

    def weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])

    def log(self) -> list[dict[str, Any]]:
        entries = jsonlines.read(self.out / "log.jsonl")
        return [{key: value for key, value in entry.items() if key not in TIMES} for entry in entries]


class Taught(Run):
    """The same with a teacher, and all that may be due at or after a step."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self.teacher = Ema(self.network)
        self.model = nn.ModuleDict({"student": self.network, "teacher": self.teacher})
        weights, biases = ([each for each in self.network.parameters() if each.ndim == ndim] for ndim in (2, 1))
        self.optimiser = torch.optim.AdamW([{"params": weights, "weight_decay": 9}, {"params": biases}], lr=0.05)
        self.optimiser.param_groups[1]["weight_decay"] = 0
        self.momentum = cosine(0.9, 1, 10)
        self.updates: list[int] = []
        self.watches: list[int] = []

    def losses(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        distance = (self.network(batch) - self.teacher(batch)).square().mean()
        return {**super().losses(batch, step), "teacher": distance}

    def after_update(self, step: int) -> None:
        self.updates.append(step)
        self.teacher.update(self.momentum(step))

    def watch(self, step: int) -> dict[str, float]:
        self.watches.append(step)
        pairs = zip(self.teacher.parameters(), self.network.parameters(), strict=True)
        with torch.no_grad():
            return {"distance": sum(float((left - right).norm()) for left, right in pairs)}

    def train(self, steps: int, losses: Losses | None = None, **options: Any) -> Position:
        due = {"after_update": self.after_update, "watch": self.watch, "watch_every": 3, "decay": cosine(0.1, 1, 10)}
        return super().train(steps, losses, **{"max_norm": 2.7, "clip": "each", **due, **options})


def test_is_the_plain_loop(tmp_path: Path) -> None:
    plain, run = Run(tmp_path / "plain"), Run(tmp_path)
    expected = []
    for step, batch in zip(range(6), batches(0), strict=False):
        plain.optimiser.param_groups[0]["lr"] = 0.05 * 0.9**step
        plain.optimiser.zero_grad()
        total = summed(plain.losses(batch, step))
        total.backward()
        norm = nn.utils.clip_grad_norm_(plain.model.parameters(), 0.5)
        plain.optimiser.step()
        expected.append((float(total.detach()), float(norm)))
    seen: list[StepReport] = []
    assert run.train(6, max_norm=0.5, progress=seen.append) == Position(step=6)
    assert torch.equal(run.weights(), plain.weights())
    assert [(report.loss, report.gradient_norm) for report in seen] == [pytest.approx(pair) for pair in expected]
    assert [entry["rate"] for entry in run.log()] == pytest.approx([0.05 * 0.9**step for step in range(6)], rel=1e-5)
    assert run.log()[2]["losses"]["square"] == pytest.approx(seen[2].losses["square"], rel=1e-5)
    assert all(report.images_per_s > 0 for report in seen)


def test_with_a_teacher_it_is_the_plain_loop(tmp_path: Path) -> None:
    plain, run = Taught(tmp_path / "plain"), Taught(tmp_path)
    norms, shorter = [], 0
    for step, batch in zip(range(6), batches(0), strict=False):
        groups = plain.optimiser.param_groups
        groups[0]["lr"] = groups[1]["lr"] = 0.05 * 0.9**step
        groups[0]["weight_decay"] = cosine(0.1, 1, 10)(step)
        plain.optimiser.zero_grad()
        summed(plain.losses(batch, step)).backward()
        each = [float(nn.utils.clip_grad_norm_(parameter, 2.7)) for parameter in plain.network.parameters()]
        shorter += sum(norm > 2.7 for norm in each) not in (0, len(each))
        norms.append(math.hypot(*each))
        plain.optimiser.step()
        plain.after_update(step)
    assert shorter
    seen: list[StepReport] = []
    run.train(6, progress=seen.append)
    assert torch.equal(run.weights(), plain.weights())
    assert [report.gradient_norm for report in seen] == pytest.approx(norms)
    assert [group["weight_decay"] for group in run.optimiser.param_groups] == [cosine(0.1, 1, 10)(5), 0]


def test_what_is_due_after_a_step(tmp_path: Path) -> None:
    run = Taught(tmp_path)
    seen: list[StepReport] = []

    def losses(batch: Tensor, step: int) -> dict[str, Tensor]:
        return {name: value * (math.nan if step in (2, 5) else 1) for name, value in run.losses(batch, step).items()}

    def watch(step: int) -> dict[str, float]:
        # What a checkpoint is past has been watched.
        assert not (tmp_path / "checkpoints" / f"{step + 1:08d}.safetensors").exists()
        return {**run.watch(step), "odd": math.inf}

    run.train(8, losses, progress=seen.append, watch=watch, checkpoint_every=1)
    assert run.updates == [0, 1, 3, 4, 6, 7]
    assert run.watches == [2, 5, 7]
    assert [report.watched is not None for report in seen] == [step in (2, 5, 7) for step in range(8)]
    assert seen[7].watched == {**run.watch(7), "odd": math.inf}
    lines = [(entry["step"], entry["watch"]) for entry in run.log() if "watch" in entry]
    assert [step for step, _ in lines] == [2, 5, 7]
    assert lines[2][1] == {"distance": pytest.approx(run.watch(7)["distance"], rel=1e-5), "odd": None}
    assert [entry["step"] for entry in run.log()] == [0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 7]


def test_without_an_interval_it_is_watched_at_the_end_alone(tmp_path: Path) -> None:
    run = Taught(tmp_path)
    run.train(5, watch_every=0)
    assert run.watches == [4]


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    Run(tmp_path).train(5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [Run, Taught])
@pytest.mark.parametrize("stopped_at", [1, 4, 6, 9])
def test_interrupted_and_resumed_equals_undisturbed(stopped_at: int, kind: type[Run], tmp_path: Path) -> None:
    calm = kind(tmp_path / "calm")
    calm.train(10)

    def interrupt(report: StepReport) -> None:
        if report.position.step == stopped_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kind(tmp_path / "stopped").train(10, progress=interrupt)
    resumed = kind(tmp_path / "stopped")
    steps: list[int] = []
    assert resumed.train(10, progress=lambda report: steps.append(report.position.step)) == Position(step=10)
    assert steps[0] == stopped_at // 4 * 4 + 1
    same(resumed, calm)


def same(resumed: Run, calm: Run) -> None:
    assert torch.equal(resumed.weights(), calm.weights())
    assert resumed.log() == calm.log()
    for name in ("00000010.safetensors", "latest.json"):
        written = [run.out / "checkpoints" / name for run in (calm, resumed)]
        assert written[0].read_bytes() == written[1].read_bytes()
    states = [run.optimiser.state_dict() for run in (calm, resumed)]
    assert states[0]["param_groups"] == states[1]["param_groups"]


@pytest.mark.parametrize("stopped_at", [2, 8, 9])
def test_stopped_by_the_watch_and_resumed_equals_undisturbed(stopped_at: int, tmp_path: Path) -> None:
    calm, stopped, resumed = Taught(tmp_path / "calm"), Taught(tmp_path / "stopped"), Taught(tmp_path / "stopped")
    calm.train(10)

    def collapse(step: int) -> dict[str, float]:
        if step == stopped_at:
            raise RunError("It has collapsed.")
        return stopped.watch(step)

    with pytest.raises(RunError, match="collapsed"):
        stopped.train(10, watch=collapse)
    assert stopped.log()[-1]["step"] == stopped_at
    resumed.train(10)
    same(resumed, calm)


def test_a_finished_run_is_not_trained_again_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    calm, short, longer = Run(tmp_path / "calm"), Run(tmp_path), Run(tmp_path)
    calm.train(7)
    short.train(5)
    again = Run(tmp_path)
    assert again.train(5, losses=lambda batch, step: pytest.fail("trained again")) == Position(step=5)
    assert torch.equal(again.weights(), short.weights())
    longer.train(7)
    assert torch.equal(longer.weights(), calm.weights())


class TestNotFinite:
    def spoilt(self, run: Run, bad: tuple[int, ...], value: float = math.nan) -> Losses:
        def losses(batch: Tensor, step: int) -> dict[str, Tensor]:
            found = run.losses(batch, step)
            return {**found, "square": found["square"] * value} if step in bad else found

        return losses

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_such_a_step_changes_nothing_and_is_counted(self, value: float, tmp_path: Path) -> None:
        calm, run = Run(tmp_path / "calm"), Run(tmp_path)
        seen: list[Tensor] = []
        end = run.train(
            6, self.spoilt(run, (2, 3), value), patience=3, progress=lambda _: seen.append(run.weights().clone())
        )
        assert end == Position(step=6, skipped=2)
        assert torch.equal(seen[1], seen[3])
        assert all(parameter.grad is None for parameter in run.model.parameters())
        # The steps around it are those of a run that never saw it: no gradient was kept.
        for step, batch in zip(range(6), batches(0), strict=False):
            if step in (2, 3):
                continue
            calm.optimiser.param_groups[0]["lr"] = 0.05 * 0.9**step
            calm.optimiser.zero_grad()
            summed(calm.losses(batch, step)).backward()
            calm.optimiser.step()
        assert torch.equal(run.weights(), calm.weights())
        assert run.log()[2]["loss"] is None
        assert run.log()[2]["losses"]["size"] is not None
        assert [entry["skipped"] for entry in run.log()] == [0, 0, 1, 2, 2, 2]
        # JSON has no word for it: every line can be read by any program.
        for line in (tmp_path / "log.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=lambda word: pytest.fail(word))

    def test_a_gradient_that_is_not_finite_under_a_loss_that_is(self, tmp_path: Path) -> None:
        run = Run(tmp_path)

        def losses(batch: Tensor, step: int) -> dict[str, Tensor]:
            return {"root": (run.model[0].bias * 0).abs().sum().sqrt()}

        before = run.weights()
        assert run.train(2, losses) == Position(step=2, skipped=2, skipped_in_a_row=2)
        assert torch.equal(run.weights(), before)

    def test_many_in_a_row_are_an_error(self, tmp_path: Path) -> None:
        run = Run(tmp_path)
        with pytest.raises(RunError, match=r"step 5: for 3 steps in a row .* \(square: nan, size: 0"):
            run.train(9, self.spoilt(run, (1, 3, 4, 5)), patience=3)
        assert run.log()[-1]["step"] == 5

    def test_the_count_goes_on_over_a_resume(self, tmp_path: Path) -> None:
        run = Run(tmp_path)
        run.train(4, self.spoilt(run, (2, 3)), patience=3)
        again = Run(tmp_path)
        with pytest.raises(RunError, match="step 4"):
            again.train(9, self.spoilt(again, (4,)), patience=3)


class TestCheckpoint:
    def test_there_is_one_and_nothing_else(self, tmp_path: Path) -> None:
        Run(tmp_path).train(10)
        names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
        assert names == {"00000010.safetensors", "00000010.optimiser.pt", "latest.json"}

    def test_a_stop_while_one_is_written_leaves_the_one_before(self, tmp_path: Path, monkeypatch) -> None:
        calm = Run(tmp_path / "calm")
        calm.train(10)
        real = checkpoint.write_json

        def stop(path: Path, content: dict[str, Any]) -> None:
            if content["step"] == 8:
                raise KeyboardInterrupt
            real(path, content)

        monkeypatch.setattr(checkpoint, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            Run(tmp_path).train(10)
        monkeypatch.undo()
        assert json.loads((tmp_path / "checkpoints" / "latest.json").read_text())["step"] == 4
        resumed = Run(tmp_path)
        resumed.train(10)
        assert torch.equal(resumed.weights(), calm.weights())

    @pytest.mark.parametrize("name", ["latest.json", "00000004.safetensors", "00000004.optimiser.pt"])
    @pytest.mark.parametrize("size_bytes", [0, 20])
    def test_a_damaged_one_is_an_error(self, name: str, size_bytes: int, tmp_path: Path) -> None:
        Run(tmp_path).train(4)
        path = tmp_path / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:size_bytes])
        with pytest.raises(RunError, match="cannot be used"):
            Run(tmp_path).train(6)

    def test_weights_under_two_names(self, tmp_path: Path) -> None:
        tied, again = Run(tmp_path), Run(tmp_path)
        for run in (tied, again):
            # The whole of a weight, and a part of it.
            run.model = nn.ModuleDict({"network": run.network, "first": run.network[0]})
            run.model.register_buffer("row", run.network[0].weight.detach()[1])
        tied.train(4)
        again.train(4)
        assert torch.equal(again.weights(), tied.weights())
        assert torch.equal(again.model.row, again.network[0].weight[1])

    def test_one_of_another_model_is_an_error(self, tmp_path: Path) -> None:
        Run(tmp_path).train(4)
        other = Run(tmp_path)
        other.model = nn.Linear(5, 1)
        with pytest.raises(RunError, match=r"Missing key.*weight"):
            other.train(6)


def test_other_lines_of_the_log_stay(tmp_path: Path) -> None:
    jsonlines.append(tmp_path / "log.jsonl", {"event": "start"})
    Run(tmp_path).train(4)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1}\n{"step": 5, "lo')
    Run(tmp_path).train(6)
    log = jsonlines.read(tmp_path / "log.jsonl")
    assert [entry.get("step") for entry in log] == [None, 0, 1, 2, 3, 4, 5]
    assert log[5]["loss"] != 1


class Board:
    """Stands in for TensorBoard, where a later writer hides what it does again: the scalars by folder."""

    shown: ClassVar[dict[str, dict[tuple[str, int], float]]] = {}

    def __init__(self, folder: str, purge_step: int) -> None:
        before = self.shown.get(folder, {})
        self.scalars = {key: value for key, value in before.items() if key[1] < purge_step}
        self.shown[folder] = self.scalars
        self.waiting: list[tuple[str, int, float]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.waiting.append((name, step, value))

    def flush(self) -> None:
        for name, step, value in self.waiting:
            assert (name, step) not in self.scalars
            self.scalars[name, step] = value
        self.waiting.clear()

    close = flush


class TestTensorboard:
    def test_it_gets_the_numbers_of_the_log_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub := types.ModuleType("tensorboard"))
        stub.SummaryWriter = Board  # pyright: ignore[reportAttributeAccessIssue]

        def interrupt(report: StepReport) -> None:
            if report.position.step == 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Taught(tmp_path).train(10, tensorboard=True, progress=interrupt)
        run = Taught(tmp_path)
        run.train(10, tensorboard=True)
        scalars = Board.shown[str(tmp_path / "tensorboard")]
        names = {"loss", "losses/square", "losses/size", "losses/teacher", "rate", "gradient_norm", "skipped"}
        assert {name for name, _ in scalars} == {*names, *TIMES, "watch/distance"}
        for entry in run.log():
            if "watch" in entry:
                assert scalars["watch/distance", entry["step"]] == entry["watch"]["distance"]
            else:
                assert scalars["losses/square", entry["step"]] == entry["losses"]["square"]
        assert sum(name == "loss" for name, _ in scalars) == 10

    def test_without_it_one_is_told_how(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(UsageError, match=r"pip install figureground\[tensorboard\]"):
            Run(tmp_path).train(2, tensorboard=True)
        Run(tmp_path).train(2)
