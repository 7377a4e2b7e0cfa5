"""Complete configurations of `figureground semantic train`. Text only: torch is not imported here."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from figureground.errors import UsageError


@dataclass(frozen=True, slots=True)
class Recipe:
    """One complete configuration.

    Attributes:
        summary: What it trains, at which scale, and what it is for.
        settings: Makes what differs from the defaults of ``SemanticTrainConfig``.
        init: The weights that published results begin with; none: random ones.
    """

    summary: str
    settings: Callable[[], dict[str, Any]]
    init: str | None = None


def maskcontrast_paper() -> dict[str, Any]:
    """MaskContrast with masks that were found without labels: the defaults, but for a batch of 128 and its queue.

    Published on the 10,582 images of PASCAL VOC's trainaug, with MoCo-v2's ResNet-50 of 800 epochs and DeepUSPS' masks:
    K-means 35.0 mIoU on val, linear probe 58.4, retrieval 53.4 (7 classes) and 43.3 (21). That saliency network had
    itself begun with weights of Cityscapes' labels.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 4.
    """
    return {"batch_size": 128, "maskcontrast": {"queue": 256}, "workers": 4}


def maskcontrast_supervised() -> dict[str, Any]:
    """The paper's other setting, which needs labels: a ResNet-50 trained on ImageNet's, and BASNet's masks.

    The weights up to the second stage of blocks stay. Published on PASCAL VOC: K-means 44.2 mIoU on val, linear probe
    63.9, retrieval 62.3 (7 classes) and 49.6 (21).

    Reference:
        Van Gansbeke et al., ICCV 2021, section 4.
    """
    return {"maskcontrast": {"freeze": 3}, "workers": 4}


def small() -> dict[str, Any]:
    """A ResNet-18 of stride 16 for photographs of some 128 px, on a CPU.

    It begins with random weights, so that the rate is higher and the key encoder faster than where it has only to be
    refined; dilations are as much smaller as the map is.
    """
    return {
        "maskcontrast": {
            "segmenter": {"arch": "resnet18", "stride": 16, "rates": (2, 4, 6)},
            "momentum": 0.99,
        },
        "pairs": {"size": 128},
        "optimiser": {"rate": 0.02},
        "batch_size": 32,
        "store_side": 160,
        "checkpoint_every": 50,
        "watch_every": 100,
    }


def tiny() -> dict[str, Any]:
    """A transformer of two blocks that learns in seconds which of the drawn objects are alike."""
    return {
        "maskcontrast": {
            "segmenter": {
                "arch": "vit",
                "width": 16,
                "vit": {"patch_size": 4, "image_size": 32, "width": 64, "depth": 2, "heads": 2, "stem": "conv"},
            },
            "queue": 64,
            "momentum": 0.95,
        },
        # Drawn pictures differ by their light above all, and are alike by their hue.
        "pairs": {"size": 32, "scale": (0.4, 1.0), "jitter": 1.0, "brightness": 0.8, "contrast": 0.6, "grey": 0.0},
        "optimiser": {"name": "adamw", "rate": 2e-3, "weight_decay": 0.01, "warmup": 10},
        "batch_size": 16,
        "epochs": 20,
        "store_side": 48,
        "checkpoint_every": 50,
        "watch_every": 100,
    }


_MOCO = "MoCo-v2's ResNet-50 (moco_v2_800ep_pretrain.pth.tar)"
RECIPES: dict[str, Recipe] = {
    "maskcontrast_paper": Recipe(
        "ResNet-50 of stride 8, 224 px, 40 epochs of 128 images a step: MaskContrast without labels; published on "
        "PASCAL VOC with DeepUSPS' masks: K-means 35.0, linear probe 58.4 mIoU",
        *(maskcontrast_paper, _MOCO),
    ),
    "maskcontrast_supervised": Recipe(
        "the same from weights and masks that labels were needed for, 64 images a step; published: K-means 44.2, "
        "linear probe 63.9 mIoU",
        *(maskcontrast_supervised, "torchvision's ResNet-50 of ImageNet's labels (timm/resnet50.tv_in1k)"),
    ),
    "small": Recipe("ResNet-18 of stride 16, 128 px, 40 epochs of 32 images a step: small photographs on a CPU", small),
    "tiny": Recipe("ViT/4 of 2 blocks, 32 px, 20 epochs of 16 images a step: to try things out", tiny),
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
