"""Weights: from a file or the hub, in official or timm's names, into a model; each failure says what to do."""

import argparse
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from figureground.backbones.catalogue import Row
from figureground.errors import WeightsError

State = dict[str, Tensor]

_HUB_FILE = "model.safetensors"
_HUB_TIMEOUT_S = 5.0
# How many names of tensors a message holds.
_NAMED = 4


def fill(model: nn.Module, row: Row, path: str | os.PathLike[str] | None = None) -> None:
    """Put the weights of ``row`` into timm's ``model``, as float32.

    Args:
        model: As :func:`figureground.backbones.vit.define` makes it; its tensors are replaced.
        row: Which backbone.
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote; ``None`` for timm's hub.

    Raises:
        WeightsError: If there is no such file, it cannot be read, or it does not fit.
    """
    file = Path(path) if path is not None else Path(row.file or "") if row.family == "own" else download(row)
    _check_digest(file, row)
    state = CONVERSIONS[row.family](_unwrap(_read(file, row), file, row))
    _check_fit(state, model.state_dict(), file, row)
    full = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    model.load_state_dict(full, assign=True)


def download(row: Row) -> Path:
    """Return the hub's file of weights, downloaded once.

    A file in the cache is used without asking the hub. Where the hub does not answer within seconds this fails, without
    the retries that ``huggingface_hub`` would make.

    Raises:
        WeightsError: If it is neither in the cache nor to be had.
    """
    import huggingface_hub

    by_hand = (
        f"Get {row.file} from {row.url} and give its path (--weights PATH),\n"
        "or use --backbone handcrafted, which needs no weights."
    )
    if row.hub_id is None:
        raise WeightsError(f"The weights of {row.name} are on no hub.", by_hand)
    cached = huggingface_hub.try_to_load_from_cache(row.hub_id, _HUB_FILE, revision=row.hub_revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        url = huggingface_hub.hf_hub_url(row.hub_id, _HUB_FILE, revision=row.hub_revision)
        huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_TIMEOUT_S)
        return Path(huggingface_hub.hf_hub_download(row.hub_id, _HUB_FILE, revision=row.hub_revision))
    except Exception as error:  # of requests, httpx or the system, by the versions installed; all end the same way
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"No weights for {row.name}: {row.hub_id} on the hub: {reason[0]}", by_hand) from error


def dino_to_timm(state: State) -> State:
    """Names of DINO's official weights to timm's: they are the same."""
    return state


def dinov2_to_timm(state: State) -> State:
    """Names of DINOv2's official weights to timm's.

    The mask token is of use in training only. With registers, timm has no position of the CLS token: it is added here.
    """
    state = {name: value for name, value in state.items() if name != "mask_token"}
    if {"register_tokens", "cls_token", "pos_embed"} <= state.keys():
        positions = state["pos_embed"]
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state


def dinov3_to_timm(state: State) -> State:
    """Names of DINOv3's official weights to timm's.

    The mask token is of use in training only; the rotary periods follow from the paper's base of 100 and are computed
    (the file holds them rounded to bfloat16). ``bias_mask`` silences the bias of the keys, for which timm has no place;
    timm's own files without biases get zeros.
    """
    converted: State = {}
    for name, value in state.items():
        if name in ("mask_token", "rope_embed.periods") or name.endswith("qkv.bias_mask"):
            continue
        if name.endswith("qkv.bias"):
            query, _, value_bias = value.chunk(3)
            converted[name.replace("qkv.bias", "q_bias")] = query
            converted[name.replace("qkv.bias", "v_bias")] = value_bias
        else:
            name = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
            converted["reg_token" if name == "storage_tokens" else name] = value
    for name in [name for name in converted if name.endswith("attn.qkv.weight")]:
        for bias in ("q_bias", "v_bias"):
            converted.setdefault(name.replace("qkv.weight", bias), torch.zeros(converted[name].shape[0] // 3))
    return converted


CONVERSIONS: dict[str, Callable[[State], State]] = {
    "own": lambda state: state,
    "dino": dino_to_timm,
    "dinov2": dinov2_to_timm,
    "dinov3": dinov3_to_timm,
}


def _read(file: Path, row: Row) -> Any:
    if not file.is_file():
        raise WeightsError(f"No file of weights at {file}.", _expected(row))
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        # DINO's full checkpoints hold their command line, a Namespace: inert, so it is let through.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers raise whatever they meet
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no detail'}"
        raise WeightsError(f"{file} cannot be read as weights ({reason}).", _expected(row)) from error


def _unwrap(content: Any, file: Path, row: Row) -> State:
    """Take the backbone out of a training checkpoint: the teacher's, without its head and the wrappers' prefixes."""
    if isinstance(content, Mapping) and isinstance(content.get("teacher"), Mapping):
        content = content["teacher"]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds no named tensors but a {type(content).__name__}.", _expected(row))
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        keys = _some([str(key) for key in content]) or "nothing"
        raise WeightsError(f"{file} holds no named tensors but {keys}.", _expected(row))
    state = {str(name).removeprefix("module."): value for name, value in content.items()}
    inner = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    return inner or state


def _check_digest(file: Path, row: Row) -> None:
    """Compare the digest of a file that carries the official name; another name may be another training."""
    if row.sha256 is None or row.file is None or file.name != Path(row.file).name or not file.is_file():
        return
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(row.sha256):
        raise WeightsError(
            f"{file} is damaged or is not what its name says: its SHA-256 begins with {digest[: len(row.sha256)]}, "
            f"expected {row.sha256}.",
            f"Get {row.file} again from {row.url}." if row.url else "Install figureground again.",
        )


def _check_fit(state: State, expected: Mapping[str, Tensor], file: Path, row: Row) -> None:
    missing = [name for name in expected if name not in state]
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
        raise WeightsError(f"{file} does not fit {row.name}: {'; '.join(problems)}.", _expected(row))


def _expected(row: Row) -> str:
    if row.family == "own":
        return "Run `figureground pretrain` again, or use --backbone handcrafted, which needs no weights."
    return f"{row.name} expects the official {row.file} ({row.url}), or timm's {row.timm_id} as .safetensors."


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
