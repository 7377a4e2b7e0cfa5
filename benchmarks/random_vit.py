"""Vision transformers with random weights whose features tell the parts of a picture apart, for measurements of speed.

With plain random weights all keys point the same way: no threshold would split them and no method would find a mask to
refine. The bias of the last block's keys is therefore set so that they are centred over the pictures of the benchmark.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from benchmarks.bench_backbones import random_state
from figureground.backbones import Row
from figureground.backbones.vit import ViT, define


def centred_state(row: Row, images: Sequence[Tensor]) -> dict[str, Tensor]:
    """Random weights of a row of the catalogue, in timm's names, with keys centred over the images.

    Args:
        row: A vision transformer with a bias of its keys.
        images: RGB in [0, 1], each `1 3 H W`.
    """
    state = random_state(row)
    model = define(row)
    model.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    backbone = ViT(model, row, "keys", "fp32")
    small = [functional.interpolate(image, size=(224, 224), mode="bilinear") for image in images]
    mean = torch.cat([backbone(image).values.flatten(0, 2) for image in small]).mean(0)
    name = max((name for name in state if name.endswith("attn.qkv.bias")), key=lambda name: int(name.split(".")[1]))
    state[name].chunk(3)[1].sub_(mean)
    return state


def write_state(state: dict[str, Tensor], path: Path) -> Path:
    """Write weights as a file that a backbone can be loaded from."""
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path
