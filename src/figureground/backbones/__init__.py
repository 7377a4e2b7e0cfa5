"""An image in, patch features out: one timm adapter, one catalogue, and handcrafted features that need no weights."""

import os
from typing import TYPE_CHECKING, get_args

from figureground.backbones.catalogue import CATALOGUE, Features, Precision, Row, find
from figureground.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["CATALOGUE", "Features", "Precision", "Row", "find", "load"]


def load(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    features: str = "keys",
    *,
    precision: str = "fp32",
    device: str = "cpu",
) -> "torch.nn.Module":
    """Build a backbone with its weights, ready to map images to patch features.

    The module takes float32 RGB images in [0, 1] of shape ``(B, 3, H, W)``, returns
    :class:`~figureground.structures.PatchFeatures`, and has ``name``, ``patch_size`` and ``width``. It normalises the
    images itself and records no gradients. ``handcrafted`` has one kind of features and one precision, whatever is
    asked for.

    Args:
        name: A row of the catalogue, or the path of a backbone that `figureground pretrain` learned.
        weights: A local official ``.pth`` file, or a ``.safetensors`` in the official or timm's names. Without it, they
            come from timm's repository on the Hugging Face hub, or from the cache of an earlier download.
        features: ``keys``, ``queries`` or ``values`` of the last block, before attention and not normed, the heads side
            by side; or ``tokens``, the patches after the last norm.
        precision: ``fp32``, or ``bf16``: faster on a CPU that has bfloat16, with keys off by up to 7e-3 of the largest
            (``results/bench/backbones.csv``); ``auto`` takes bf16 where the device multiplies it in hardware, so that
            the features depend on the machine.
        device: Where the weights are put; images must be there too.

    Raises:
        UsageError: If an argument is unknown, or ``weights`` are given to a backbone without.
        WeightsError: If the weights cannot be found, read, or do not fit.
    """
    row = find(name)
    for value, choices in ((features, get_args(Features)), (precision, get_args(Precision))):
        if value not in choices:
            raise UsageError(f"{value!r} is none of {', '.join(choices)}.")
    if not row.learned:
        if weights is not None:
            raise UsageError(f"{name} has no weights to load, got {os.fspath(weights)!r}.")
        from figureground.backbones.handcrafted import Handcrafted

        return Handcrafted().to(device)

    from figureground.backbones.vit import ViT, define
    from figureground.backbones.weights import fill

    model = define(row)
    fill(model, row, weights)
    if precision == "auto":
        precision = "bf16" if multiplies_bfloat16(device) else "fp32"
    return ViT(model, row, features, precision).to(device)


def multiplies_bfloat16(device: str) -> bool:
    """Whether a device multiplies matrices of bfloat16 in hardware; unknown counts as not."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
