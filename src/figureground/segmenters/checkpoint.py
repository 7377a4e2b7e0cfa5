"""Segmenters on disk: a safetensors file that says how to build it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from figureground.config import build
from figureground.errors import ConfigError, WeightsError
from figureground.segmenters.maskcontrast import Segmenter, SegmenterConfig
from figureground.storage.atomic import write_bytes

VERSION = 1
FILE = "segmenter.safetensors"
_KEY = "figureground_segmenter"
_REMEDY = f"A segmenter is made by `figureground semantic train RUN --out OUT`: give OUT, or OUT/{FILE}."


def save(path: str | os.PathLike[str], segmenter: Segmenter, facts: Mapping[str, Any] | None = None) -> None:
    """Write a segmenter's weights, and the configuration to build it from, atomically.

    Args:
        path: Where to.
        segmenter: On any device.
        facts: Where it comes from; plain values.

    Raises:
        RunError: If the file cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in segmenter.state_dict().items()}
    # One entry: safetensors writes several in an order that changes, and the same segmenter is to be the same bytes.
    said = {"version": VERSION, "config": segmenter.config.model_dump(mode="json"), "facts": dict(facts or {})}
    write_bytes(Path(path), safetensors.torch.save(weights, {_KEY: json.dumps(said)}))


def load(path: str | os.PathLike[str]) -> Segmenter:
    """Build a segmenter from a file.

    Args:
        path: What :func:`save` wrote, or the folder of a run that has it as ``segmenter.safetensors``.

    Returns:
        The segmenter, in evaluation mode, on the CPU.

    Raises:
        WeightsError: If there is no such file, it cannot be read, holds something else or is of a later version.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise WeightsError(f"No segmenter at {file}.", _REMEDY)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dictionary)
    except Exception as error:  # damaged bytes make the reader raise what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{file} cannot be read as a segmenter ({reason}).", _REMEDY) from error
    try:
        segmenter = Segmenter(_read_config(metadata, file))
        segmenter.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{file} does not hold the weights that it says ({reason}).", _REMEDY) from error
    return segmenter.eval()


def _read_config(metadata: Mapping[str, str], file: Path) -> SegmenterConfig:
    if _KEY not in metadata:
        raise WeightsError(f"{file} holds weights, but not those of a segmenter.", _REMEDY)
    try:
        said = json.loads(metadata[_KEY])
        if said["version"] == VERSION:
            return build(SegmenterConfig, said["config"])
    except (ValueError, TypeError, KeyError, ConfigError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{file} does not say how to build its segmenter ({reason}).", _REMEDY) from error
    raise WeightsError(
        f"{file} is a segmenter of version {said['version']}; this program reads version {VERSION}.",
        "Use the version of figureground that made it.",
    )
