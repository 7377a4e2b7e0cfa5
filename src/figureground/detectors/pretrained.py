"""First weights of a detector's backbone, from whoever trained one."""

import math
import os
import re
from pathlib import Path
from typing import Any

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from figureground.backbones.catalogue import CATALOGUE
from figureground.backbones.weights import download
from figureground.detectors.detectron2 import convert_trunk
from figureground.detectors.interface import Detector
from figureground.detectors.weights import State, fill, read_state
from figureground.errors import WeightsError

_REMEDY = (
    "Give DINO's dino_resnet50_pretrain.pth, MoCo's checkpoint, a backbone of detectron2 (.pkl), a file in the names "
    "of torchvision or timm, a detector of this program, or timm/NAME on the hub; for ViTDet, DINO's file of a ViT of "
    "the same size or its name, as dino_b16."
)
# Where files keep the backbone; the first of them that a name begins with. What stands elsewhere beside it (a momentum
# encoder, a pyramid, heads) is not the backbone's.
_PREFIXES = ("backbone.trunk.", "backbone.bottom_up.", "module.encoder_q.", "module.backbone.", "backbone.", "module.")
# Classifiers and projections on top of it.
_HEAD = re.compile(r"^(stem\.)?(fc|head|last_linear)\.")
_HUB_FILE = "model.safetensors"
_HUB_TIMEOUT_S = 5.0


def load_backbone(model: Detector, source: str | os.PathLike[str]) -> None:
    """Put a backbone's weights into a detector; its pyramid and heads stay as they are.

    Positions that a transformer learned at another size are brought to that of the detector's.

    Args:
        model: Whose ``backbone.trunk`` is filled.
        source: A file; ``timm/NAME``, a repository of timm on the Hugging Face hub, as ``timm/resnet50.a1_in1k``; or
            the name of a DINO transformer in the catalogue of backbones.

    Raises:
        WeightsError: If the weights cannot be found or read, or a tensor is missing, unexpected or of another shape.
    """
    load_trunk(model.backbone.trunk, source)


def load_trunk(trunk: nn.Module, source: str | os.PathLike[str]) -> None:
    """Put a backbone's weights into a ResNet of torchvision or a transformer of timm, as :func:`load_backbone` does."""
    path = _find(os.fspath(source))
    fill(trunk, _fit_positions(trunk_state(read_state(path)), trunk), f"The backbone in {path}", _REMEDY)


def trunk_state(state: State) -> State:
    """The backbone's tensors, under the names of torchvision and timm, without what stands on top of it."""
    for prefix in _PREFIXES:
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner:
            state = inner
            break
    return convert_trunk({name: value for name, value in state.items() if not _HEAD.match(name)})


def _fit_positions(state: State, trunk: Any) -> State:
    given = state.get("pos_embed")
    if given is None or not hasattr(trunk, "pos_embed") or given.shape == trunk.pos_embed.shape:
        return state
    places = given.shape[1] - trunk.num_prefix_tokens
    if math.isqrt(places) ** 2 != places:
        return state
    size = list(trunk.patch_embed.grid_size)
    return {**state, "pos_embed": resample_abs_pos_embed(given, size, num_prefix_tokens=trunk.num_prefix_tokens)}


def _find(source: str) -> Path:
    if Path(source).is_file():
        return Path(source)
    if source in CATALOGUE:
        return download(CATALOGUE[source])
    if not re.fullmatch(r"timm/[\w.-]+", source):
        raise WeightsError(f"No file of weights at {source}.", _REMEDY)
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(source, _HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # Asked first, with little patience: the download itself would try for minutes.
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(source, _HUB_FILE), timeout=_HUB_TIMEOUT_S)
        return Path(huggingface_hub.hf_hub_download(source, _HUB_FILE))
    except Exception as error:  # of requests, httpx or the system, by the versions installed; all end the same way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"No weights {source} on the hub: {reason}", _REMEDY) from error
