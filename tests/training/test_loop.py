"""The loop: what a step does, resume to the bit, and what is not finite."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from figureground.errors import RunError
from figureground.storage import jsonlines
from figureground.training import checkpoint
from figureground.training.checkpoint import Position
from figureground.training.loop import StepReport, train
from figureground.training.order import generator_for

Losses = Callable[[Tensor, int], dict[str, Tensor]]
TIMES = ("images_per_s", "data_s")


def batches(step: int) -> Iterator[Tensor]:
    while True:
        yield torch.rand(4, 5, generator=generator_for(0, "batch", step))
        step += 1


class Run:
    """A small network on the way to predicting the mean of its input."""

    def __init__(self, out: Path, rate: float = 0.05) -> None:
        self.out = out
        generator = generator_for(0, "weights")
        self.model = nn.Sequential(nn.utils.skip_init(nn.Linear, 5, 3), nn.Tanh(), nn.utils.skip_init(nn.Linear, 3, 1))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=rate)

    def losses(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        error = self.model(batch)[:, 0] - batch.mean(1)
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


def test_is_the_plain_loop(tmp_path: Path) -> None:
    plain, run = Run(tmp_path / "plain"), Run(tmp_path)
    expected = []
    for step, batch in zip(range(6), batches(0), strict=False):
        plain.optimiser.param_groups[0]["lr"] = 0.05 * 0.9**step
        plain.optimiser.zero_grad()
        total = sum(plain.losses(batch, step).values())
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


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    Run(tmp_path).train(5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stopped_at", [1, 4, 6, 9])
def test_interrupted_and_resumed_equals_undisturbed(stopped_at: int, tmp_path: Path) -> None:
    calm = Run(tmp_path / "calm")
    calm.train(10)

    def interrupt(report: StepReport) -> None:
        if report.position.step == stopped_at:
            raise KeyboardInterrupt

    first = Run(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        first.train(10, progress=interrupt)
    resumed = Run(tmp_path / "stopped")
    steps: list[int] = []
    assert resumed.train(10, progress=lambda report: steps.append(report.position.step)) == Position(step=10)
    assert steps[0] == stopped_at // 4 * 4 + 1
    assert torch.equal(resumed.weights(), calm.weights())
    assert resumed.log() == calm.log()
    for name in ("00000010.safetensors", "latest.json"):
        written = [run.out / "checkpoints" / name for run in (calm, resumed)]
        assert written[0].read_bytes() == written[1].read_bytes()


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
            sum(calm.losses(batch, step).values()).backward()
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
