"""Complete configurations of `figureground pretrain`. Text only: torch is not imported here."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from figureground.errors import UsageError


@dataclass(frozen=True, slots=True)
class Recipe:
    """One complete configuration.

    Attributes:
        summary: The network, its size, and what it is for.
        settings: Makes what differs from the defaults of ``PretrainConfig``.
    """

    summary: str
    settings: Callable[[], dict[str, Any]]


def dino_s16() -> dict[str, Any]:
    """The paper's ViT-S/16; 100 epochs of ImageNet are 125,000 steps, 300 and 800 are `epochs`.

    Reference:
        Caron et al., ICCV 2021, section 3.2.
    """
    return {}


def small() -> dict[str, Any]:
    """ViT-Tiny/8 for tens of thousands of pictures of some 100 px; what is in patches and pixels is scaled with them.

    The last layer is as much smaller as the images are fewer, and the teacher moves faster, as there are fewer steps.
    """
    return {
        "batch_size": 256,
        "epochs": 100,
        "store_side": 128,
        "dino": {
            "vit": {"patch_size": 8, "image_size": 96, "width": 192, "heads": 3},
            "head": {"outputs": 4096, "hidden": 1024, "bottleneck": 256},
            "momentum": 0.99,
        },
        "crops": {"global_size": 96, "local_size": 48, "local_count": 6, "blur_sigma": (0.1, 1.0)},
    }


def tiny() -> dict[str, Any]:
    """A network of a hundred thousand weights that learns in seconds what drawn pictures have in common.

    With a last layer that small the mean of the outputs is soon far from uniform, and with few steps the teacher has to
    move fast: constants are such that it neither runs away nor stands still.
    """
    return {
        "batch_size": 32,
        "epochs": 40,
        "store_side": 48,
        "checkpoint_every": 50,
        "watch_every": 100,
        "dino": {
            "vit": {"patch_size": 8, "image_size": 32, "width": 64, "depth": 2, "heads": 2},
            "head": {"outputs": 128, "hidden": 128, "bottleneck": 64},
            "collapse": {"after_steps": 200},
            "rate": 8e-3,
            "warmup_epochs": 2,
            "weight_decay_end": 0.04,
            "teacher_temperature": 0.04,
            "momentum": 0.99,
            "precision": "fp32",
        },
        "crops": {
            "global_size": 32,
            "global_scale": (0.4, 1.0),
            "local_size": 16,
            "local_scale": (0.15, 0.4),
            "local_count": 2,
            "brightness": 0.6,
            "contrast": 0.6,
            "blur_sigma": (0.1, 0.5),
        },
    }


RECIPES: dict[str, Recipe] = {
    "dino_s16": Recipe("ViT-S/16, 21.7 M weights, 224 px, 1024 images a step, 100 epochs: the paper's", dino_s16),
    "small": Recipe("ViT-Tiny/8, 5.4 M weights, 96 px, 256 images a step, 100 epochs: for small pictures", small),
    "tiny": Recipe("ViT/8 of 2 blocks, 0.1 M weights, 32 px, 32 images a step, 40 epochs: to try things out", tiny),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        UsageError: If there is none; the message holds the nearest one and all of them.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"Unknown recipe {name!r}.{hint}", f"Recipes: {', '.join(RECIPES)}.")
    return RECIPES[name]
