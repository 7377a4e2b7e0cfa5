"""Weights from files: read safely, and put into a model wholly or not at all."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from figureground.detectors.pickled import read_pickle
from figureground.errors import WeightsError

State = dict[str, Tensor]

# Where checkpoints keep their weights, by who writes them: DINO, detectron2, MoCo and timm.
_WRAPPERS = ("teacher", "model", "state_dict")
# How many names of tensors a message holds.
_NAMED = 4


def read_state(path: Path) -> State:
    """The named tensors of a ``.safetensors``, of a ``.pkl`` of NumPy arrays, or of what ``torch.save`` wrote.

    Of a training checkpoint, the model; DINO's gives its teacher.

    Raises:
        WeightsError: If there is no such file, it cannot be read, or holds something else.
    """
    if not path.is_file():
        raise WeightsError(f"No file of weights at {path}.")
    content = _read(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds no named tensors but a {type(content).__name__}.")
    state = {
        str(name): torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for name, value in content.items()
    }
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if not state or others:
        raise WeightsError(f"{path} holds no named tensors but {_some(others) or 'nothing'}.")
    return state


def fill(model: nn.Module, state: State, source: str, remedy: str = "") -> None:
    """Put weights into a model, each tensor into its place.

    Args:
        model: Its own types and device stay.
        state: By the model's names. Only counts of batches may be missing, which older files have not.
        source: Of the weights, for the message.
        remedy: For the message.

    Raises:
        WeightsError: If a tensor is missing, unexpected or of another shape; the model is then unchanged.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise WeightsError(f"{source} does not fit: {'; '.join(problems)}.", remedy)
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> Any:
    if path.suffix == ".pkl":
        return read_pickle(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # DINO's full checkpoints hold their command line, a Namespace: inert, so it is let through.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers raise whatever they meet
        reason = (str(error).strip().splitlines() or ["no detail"])[0]
        raise WeightsError(f"{path} cannot be read as weights ({type(error).__name__}: {reason}).") from error


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
