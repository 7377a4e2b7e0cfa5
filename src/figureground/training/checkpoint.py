"""Checkpoints: the weights, the optimiser and the step, wholly there or not at all.

A checkpoint is two files named by its step; ``latest.json`` is written after both and says which step is whole. Earlier
ones are removed then, so that a folder holds one checkpoint, or two for a moment.
"""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.optim import Optimizer

from figureground.errors import RunError
from figureground.storage.atomic import make_folder, write_bytes, write_json


@dataclass(frozen=True, slots=True)
class Position:
    """How far training is.

    Attributes:
        step: Steps done, skipped ones included; the number of the next.
        skipped: Steps without an update, because something was not finite.
        skipped_in_a_row: Of these, how many the last steps were.
    """

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


def save(folder: Path, model: nn.Module, optimiser: Optimizer, position: Position) -> None:
    """Write a checkpoint and remove the one before.

    Raises:
        RunError: If the disk is full or the folder cannot be written; the checkpoint before is then still whole.
    """
    make_folder(folder)
    name = f"{position.step:08d}"
    # Each a copy of its own: weights that share memory under two names are written, and read again, under both.
    weights = {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
    write_bytes(folder / f"{name}.safetensors", safetensors.torch.save(weights))
    buffer = io.BytesIO()
    torch.save(optimiser.state_dict(), buffer)
    write_bytes(folder / f"{name}.optimiser.pt", buffer.getvalue())
    write_json(folder / "latest.json", asdict(position))
    for old in [*folder.glob("*.safetensors"), *folder.glob("*.optimiser.pt")]:
        if old.name.partition(".")[0] != name:
            old.unlink(missing_ok=True)


def load(folder: Path, model: nn.Module, optimiser: Optimizer) -> Position:
    """Put the checkpoint's values into the model and the optimiser.

    Returns:
        Where it was made; the beginning, with nothing changed, where there is no checkpoint.

    Raises:
        RunError: If it is damaged or of another model or optimiser.
    """
    latest = folder / "latest.json"
    if not latest.exists():
        return Position()
    try:
        position = Position(**json.loads(latest.read_text("utf-8")))
        name = f"{position.step:08d}"
        weights = safetensors.torch.load((folder / f"{name}.safetensors").read_bytes())
        # Only tensors and plain values are admitted: a checkpoint cannot run code. Both go to the devices of what they
        # are put into; here they are on the CPU, not all ranks' on one GPU.
        state: dict[str, Any] = torch.load(folder / f"{name}.optimiser.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(weights)
        optimiser.load_state_dict(state)
    except Exception as error:  # damaged bytes make the readers raise whatever they meet
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(
            f"The checkpoint in {folder} cannot be used ({reason}).",
            f"Remove {folder} to begin anew.",
        ) from error
    return position
