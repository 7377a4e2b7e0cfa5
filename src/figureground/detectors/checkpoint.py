"""Detectors on disk: a safetensors file that says which detector it is of."""

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from figureground.config import merge
from figureground.detectors import detectron2
from figureground.detectors.interface import Detector
from figureground.detectors.registry import configure, create
from figureground.detectors.weights import fill
from figureground.errors import ConfigError, UsageError, WeightsError
from figureground.storage.atomic import write_bytes

VERSION = 1
_KEY = "figureground_detector"
_REMEDY = "Give a detector that this program trained (.safetensors), or a checkpoint of detectron2 (.pth, .pkl)."


def save(path: str | os.PathLike[str], model: Detector) -> None:
    """Write a detector's weights, and the configuration to build it from, atomically.

    Raises:
        RunError: If the file cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # One entry: safetensors writes several in an order that changes, and the same detector is to be the same bytes.
    metadata = {_KEY: json.dumps({"version": VERSION, "config": model.config.model_dump(mode="json")})}
    write_bytes(Path(path), safetensors.torch.save(weights, metadata))


def load(path: str | os.PathLike[str], **changes: Any) -> Detector:
    """Build a detector from a file.

    Args:
        path: What :func:`save` wrote, or an official checkpoint of detectron2.
        changes: Fields of its configuration that are to differ, as ``max_detections=300``.

    Returns:
        The detector, in evaluation mode, on the CPU.

    Raises:
        WeightsError: If there is no such file, it cannot be read, holds something else or is of a later version.
        ConfigError: If a change names no field, or its value is out of range.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"No detector at {file}.", _REMEDY)
    if file.suffix != ".safetensors":
        return detectron2.load(file, **changes)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dictionary)
    except Exception as error:  # damaged bytes make the reader raise what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{file} cannot be read as a detector ({reason}).", _REMEDY) from error
    model = create(configure(**merge(_read_config(metadata, file), changes)))
    fill(model, weights, str(file), _REMEDY)
    return model.eval()


def is_detector(metadata: dict[str, str] | None) -> bool:
    """Whether what stands in a safetensors file beside its tensors says that they are a detector's."""
    return _KEY in (metadata or {})


def _read_config(metadata: dict[str, str], file: Path) -> dict[str, Any]:
    if not is_detector(metadata):
        raise WeightsError(f"{file} holds weights, but not those of a detector.", _REMEDY)
    try:
        facts = json.loads(metadata[_KEY])
        version, config = facts["version"], facts["config"]
        if version == VERSION:
            configure(**config)
            return config
    except (ValueError, TypeError, KeyError, ConfigError, UsageError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{file} does not say which detector it is of ({reason}).", _REMEDY) from error
    raise WeightsError(
        f"{file} is a detector of version {version}; this program reads version {VERSION}.",
        "Use the version of figureground that made it.",
    )
