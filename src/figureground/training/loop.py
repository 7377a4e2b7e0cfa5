"""The one training loop: it sees a dictionary of losses, and nothing of the model or the task."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from figureground.errors import RunError
from figureground.storage.atomic import make_folder
from figureground.training import checkpoint
from figureground.training.checkpoint import Position
from figureground.training.metrics_log import MetricsLog

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did.

    Attributes:
        position: After it.
        steps: In all.
        losses: By name, weighted as they were summed; NaN or infinite where they were.
        rate: Learning rate of the first group of parameters.
        gradient_norm: Before clipping.
        images_per_s: Of this step.
    """

    position: Position
    steps: int
    losses: dict[str, float]
    rate: float
    gradient_norm: float
    images_per_s: float

    @property
    def loss(self) -> float:
        """The sum that was minimised."""
        return sum(self.losses.values())


def train(
    model: nn.Module,
    losses: Callable[[Batch, int], Mapping[str, Tensor]],
    batches: Callable[[int], Iterator[Batch]],
    optimiser: Optimizer,
    schedule: Callable[[int], float],
    steps: int,
    out: Path,
    *,
    batch_size: int,
    checkpoint_every: int,
    max_norm: float | None = None,
    patience: int = 10,
    progress: Callable[[StepReport], None] = lambda _: None,
) -> Position:
    """Train a model, or go on with training it.

    A step sums the losses, goes backward, clips and updates. Where the sum or the gradient is not finite the update is
    left out, the gradient dropped and the step counted as skipped.

    Resume, in this order; interrupted and resumed then equals undisturbed, to the bit on a CPU:

    1. The caller builds model and optimiser as for a first start. The rates in the optimiser are those that the
       schedule scales; they are read now.
    2. The newest whole checkpoint is found; without one, training begins at step 0 with what the caller built.
    3. Its weights are put into the model, its state into the optimiser, its counts into the position.
    4. Lines of ``log.jsonl`` of that step and later are dropped.
    5. ``batches`` is asked for the batches from that step on. Their order and every random draw are functions of the
       seed and the step (:mod:`figureground.training.order`), so that nothing of them was saved.
    6. Each step sets its rate from the schedule before anything else.

    Args:
        model: What is trained; all of its state is in the checkpoints.
        losses: From a batch and the number of the step to the losses, scalars that are summed as they are. What else
            a model needs to be trained, be it a teacher or precision, is in here.
        batches: From the number of a step to the batches of it and of those that follow, without end.
        optimiser: Of the model's parameters.
        schedule: From the number of a step to what its rates are multiplied by.
        steps: In all, those of an earlier start included.
        out: The run's folder: ``log.jsonl`` and ``checkpoints/``.
        batch_size: Images a step; only the speed is computed from it.
        checkpoint_every: Steps between two checkpoints: what a kill can cost at most. There is always one at the end.
        max_norm: The gradient is scaled down to this norm; none: it is left alone.
        patience: That many skipped steps in a row are an error.
        progress: Called after every step.

    Returns:
        Where training ended.

    Raises:
        RunError: If too many steps in a row were skipped, a checkpoint is damaged, or the folder cannot be written.
    """
    rates = [group["lr"] for group in optimiser.param_groups]
    position = checkpoint.load(out / "checkpoints", model, optimiser)
    make_folder(out)
    log = MetricsLog(out / "log.jsonl")
    log.rewind(position.step)
    source = batches(position.step)
    for step in range(position.step, steps):
        start = time.perf_counter()
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step)
        batch = next(source)
        waited = time.perf_counter() - start
        values, norm, updated = _update(model, optimiser, losses(batch, step), max_norm)
        position = _advance(position, updated)
        speed = batch_size / (time.perf_counter() - start)
        report = StepReport(position, steps, values, optimiser.param_groups[0]["lr"], norm, speed)
        log.write(step, **_line(report), data_s=round(waited, 4))
        if position.skipped_in_a_row >= patience:
            raise RunError(
                f"Training stopped at step {step}: for {patience} steps in a row the loss or its gradient was not "
                f"finite ({', '.join(f'{name}: {value:g}' for name, value in values.items())}).",
                "Lower the learning rate, or look at the data of these steps.",
            )
        if position.step % checkpoint_every == 0 or position.step == steps:
            checkpoint.save(out / "checkpoints", model, optimiser, position)
        progress(report)
    return position


def _update(
    model: nn.Module, optimiser: Optimizer, losses: Mapping[str, Tensor], max_norm: float | None
) -> tuple[dict[str, float], float, bool]:
    """Take one step; return the losses, the norm of the gradient, and whether there was an update."""
    # Before and after: no gradient of a step that was skipped, or of the caller's, is ever used.
    optimiser.zero_grad(set_to_none=True)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    values = {name: float(value.detach()) for name, value in losses.items()}
    limit = math.inf if max_norm is None else max_norm
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), limit))
    updated = math.isfinite(norm) and math.isfinite(float(total.detach()))
    if updated:
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return values, norm, updated


def _advance(position: Position, updated: bool) -> Position:
    if updated:
        return replace(position, step=position.step + 1, skipped_in_a_row=0)
    return Position(position.step + 1, position.skipped + 1, position.skipped_in_a_row + 1)


def _line(report: StepReport) -> dict[str, object]:
    """A line of the log; a number that is not finite, which JSON has no word for, is null."""

    def number(value: float) -> float | None:
        return float(f"{value:.6g}") if math.isfinite(value) else None

    return {
        "loss": number(report.loss),
        "losses": {name: number(value) for name, value in report.losses.items()},
        "rate": number(report.rate),
        "gradient_norm": number(report.gradient_norm),
        "skipped": report.position.skipped,
        "images_per_s": number(report.images_per_s),
    }
