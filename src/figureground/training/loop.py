"""The one training loop: it sees a dictionary of losses, and nothing of the model or the task."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from figureground.errors import RunError
from figureground.storage.atomic import make_folder
from figureground.training import checkpoint
from figureground.training.checkpoint import Position
from figureground.training.distributed import broadcast_, gather, mean_, on_first, world
from figureground.training.metrics_log import MetricsLog

Batch = TypeVar("Batch")
Clip = Literal["total", "each"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did.

    Attributes:
        position: After it.
        steps: In all.
        losses: By name, weighted as they were summed; NaN or infinite where they were.
        rate: Learning rate of the first group of parameters.
        gradient_norm: Of the whole gradient, before clipping.
        images_per_s: Of this step.
        watched: What the watch found after it, where it was due.
    """

    position: Position
    steps: int
    losses: dict[str, float]
    rate: float
    gradient_norm: float
    images_per_s: float
    watched: dict[str, float] | None = None

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
    clip: Clip = "total",
    decay: Callable[[int], float] | None = None,
    after_update: Callable[[int], None] = lambda _: None,
    watch: Callable[[int], Mapping[str, float]] | None = None,
    watch_every: int = 0,
    tensorboard: bool = False,
    patience: int = 10,
    progress: Callable[[StepReport], None] = lambda _: None,
) -> Position:
    """Train a model, or go on with training it.

    A step sums the losses, goes backward, clips and updates. Where the sum or the gradient is not finite the update is
    left out, the gradient dropped and the step counted as skipped.

    Resume, in this order; interrupted and resumed then equals undisturbed, to the bit on a CPU:

    1. The caller builds model and optimiser as for a first start. The rates in the optimiser are those that the
       schedule scales, and its groups with a weight decay those that ``decay`` sets; they are read now.
    2. The newest whole checkpoint is found; without one, training begins at step 0 with what the caller built.
    3. Its weights are put into the model, its state into the optimiser, its counts into the position.
    4. Lines of ``log.jsonl`` of that step and later are dropped, and TensorBoard is told to.
    5. ``batches`` is asked for the batches from that step on. Their order and every random draw are functions of the
       seed and the step (:mod:`figureground.training.order`), so that nothing of them was saved.
    6. Each step sets its rate and its weight decay before anything else.
    7. What is due after a step comes in the order: update, ``after_update``, line of the log, watch and its line,
       checkpoint. What a checkpoint is past has been written, what it is not past is done again.

    Several processes (:mod:`figureground.training.distributed`) all call this with their shares of the batches. Each
    reads the checkpoint; the weights are then those of rank 0, which alone writes, watches and reports. Gradients and
    losses are averaged over the ranks in one piece after the backward pass, so that every rank decides alike. A
    parameter without a gradient on some ranks counts as zero there. Not by DistributedDataParallel: it wants the model
    called as a whole, once a pass, with the same parameters used by all; losses here may call any part of it, several
    times or not at all, and they are all that is seen. The price is that the exchange waits for the backward pass.

    Args:
        model: What is trained; all of its state is in the checkpoints.
        losses: From a batch and the number of the step to the losses, scalars that are summed as they are, under the
            same names on every rank. What else a model needs to be trained, be it a teacher or precision, is in here.
        batches: From the number of a step to the batches of it and of those that follow, without end.
        optimiser: Of the model's parameters.
        schedule: From the number of a step to what its rates are multiplied by.
        steps: In all, those of an earlier start included.
        out: The run's folder: ``log.jsonl`` and ``checkpoints/``.
        batch_size: Images a step, over all ranks; only the speed is computed from it.
        checkpoint_every: Steps between two checkpoints: what a kill can cost at most. There is always one at the end.
        max_norm: The gradient is scaled down to this norm; none: it is left alone.
        clip: Whether that is the norm of the whole gradient or of each parameter's own.
        decay: From the number of a step to its weight decay, in the groups that had one; none: it stays.
        after_update: Called on every rank with the number of a step that was not skipped, once the parameters have
            moved: a moving average follows here.
        watch: Called on rank 0 with the number of the step just done; its numbers get a line in the log. It leaves the
            model as it is, its mode included. What it raises, such as a RunError at a collapse, ends every rank.
        watch_every: Steps between two watches; there is always one at the end. 0: that one alone.
        tensorboard: Write the log's numbers into ``tensorboard/`` too.
        patience: That many skipped steps in a row are an error.
        progress: Called after every step.

    Returns:
        Where training ended.

    Raises:
        RunError: If too many steps in a row were skipped, a checkpoint is damaged, or the folder cannot be written.
        UsageError: If TensorBoard is wanted and not installed.
    """
    first, folder = world().first, out / "checkpoints"
    rates = [group["lr"] for group in optimiser.param_groups]
    decays = [group.get("weight_decay", 0) != 0 for group in optimiser.param_groups]
    position = checkpoint.load(folder, model, optimiser)
    _align(model, position)
    make_folder(out)
    with closing(MetricsLog(out / "log.jsonl", out / "tensorboard" if tensorboard else None)) as log:
        if first:
            log.rewind(position.step)
        source = batches(position.step)
        for step in range(position.step, steps):
            start = time.perf_counter()
            for group, rate, decayed in zip(optimiser.param_groups, rates, decays, strict=True):
                group["lr"] = rate * schedule(step)
                if decay and decayed:
                    group["weight_decay"] = decay(step)
            batch = next(source)
            waited = time.perf_counter() - start
            values, norm, updated = _update(model, optimiser, losses(batch, step), max_norm, clip)
            if updated:
                after_update(step)
            position = _advance(position, updated)
            speed = batch_size / (time.perf_counter() - start)
            report = StepReport(position, steps, values, optimiser.param_groups[0]["lr"], norm, speed)
            if first:
                log.write(step, **_line(report), data_s=round(waited, 4))
            if position.skipped_in_a_row >= patience:
                raise _stuck(report, patience)
            if watch and _due(position.step, watch_every, steps):
                watched = on_first(watch, step)
                if watched is not None:
                    report = replace(report, watched={name: float(value) for name, value in watched.items()})
                    log.write(step, watch={name: _number(value) for name, value in watched.items()})
            if _due(position.step, checkpoint_every, steps):
                on_first(checkpoint.save, folder, model, optimiser, position)
            if first:
                progress(report)
    return position


def _align(model: nn.Module, position: Position) -> None:
    """Start every rank from the weights of the first; all must have found the same checkpoint."""
    found = gather(torch.tensor([position.step], device=world().device)).tolist()
    if len(set(found)) > 1:
        raise RunError(
            f"The processes found checkpoints of different steps: {', '.join(str(step) for step in found)}.",
            "Choose an --out that every machine sees as the same folder.",
        )
    broadcast_([*model.parameters(), *model.buffers()])


def _update(
    model: nn.Module, optimiser: Optimizer, losses: Mapping[str, Tensor], max_norm: float | None, clip: Clip
) -> tuple[dict[str, float], float, bool]:
    """Take one step; return the losses, the norm of the gradient, and whether there was an update."""
    # Before and after: no gradient of a step that was skipped, or of the caller's, is ever used.
    model.zero_grad(set_to_none=True)
    stacked = torch.stack(list(losses.values()))
    stacked.sum().backward()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stacked = _mean_over_ranks(parameters, stacked.detach())
    # All numbers at once: each one asked for on its own would wait for the device anew.
    norms = _clip(parameters, max_norm, clip)
    *values, total, norm = torch.cat([stacked, torch.stack([stacked.sum(), norms])]).tolist()
    updated = math.isfinite(norm) and math.isfinite(total)
    if updated:
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return dict(zip(losses, values, strict=True)), norm, updated


def _mean_over_ranks(parameters: Sequence[nn.Parameter], losses: Float[Tensor, "L"]) -> Float[Tensor, "L"]:
    """Average the gradients in place, and the losses."""
    if world().size == 1:
        return losses
    used = losses.new_tensor([parameter.grad is not None for parameter in parameters])
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    numbers = torch.cat([losses, used])
    mean_([*(parameter.grad for parameter in parameters if parameter.grad is not None), numbers])
    losses, used = numbers.split([len(losses), len(used)])
    for parameter, somewhere in zip(parameters, used.tolist(), strict=True):
        if not somewhere:
            parameter.grad = None
    return losses


def _clip(parameters: Sequence[nn.Parameter], max_norm: float | None, clip: Clip) -> Float[Tensor, ""]:
    """Scale the gradient down where it is too long; return its norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None and clip == "total":
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    elif max_norm is not None:
        for gradient in gradients:
            gradient.mul_((max_norm / (gradient.norm() + 1e-6)).clamp(max=1))
    return norm


def _advance(position: Position, updated: bool) -> Position:
    if updated:
        return replace(position, step=position.step + 1, skipped_in_a_row=0)
    return Position(position.step + 1, position.skipped + 1, position.skipped_in_a_row + 1)


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _stuck(report: StepReport, patience: int) -> RunError:
    return RunError(
        f"Training stopped at step {report.position.step - 1}: for {patience} steps in a row the loss or its gradient "
        f"was not finite ({', '.join(f'{name}: {value:g}' for name, value in report.losses.items())}).",
        "Lower the learning rate, or look at the data of these steps.",
    )


def _line(report: StepReport) -> dict[str, object]:
    """A line of the log."""
    return {
        "loss": _number(report.loss),
        "losses": {name: _number(value) for name, value in report.losses.items()},
        "rate": _number(report.rate),
        "gradient_norm": _number(report.gradient_norm),
        "skipped": report.position.skipped,
        "images_per_s": _number(report.images_per_s),
    }


def _number(value: float) -> float | None:
    """Rounded for the log; what is not finite, which JSON has no word for, is null."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
