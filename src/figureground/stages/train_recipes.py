"""Complete configurations of `figureground train`. Text only: torch is not imported here."""

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
        detector: Which it is made for; another may take its place.
        settings: From a detector's name to what differs from the defaults of ``TrainConfig``. Of ``detector`` there are
            the ``preset`` and what differs from that.
        init: The weights that published results begin with; none: random ones.
    """

    summary: str
    detector: str
    settings: Callable[[str], dict[str, Any]]
    init: str | None = None


def cutler_cascade(detector: str) -> dict[str, Any]:
    """CutLER's first round as released.

    Reference:
        Wang et al., CutLER, CVPR 2023, and its released configuration. Deviates: bfloat16 where float16 was used; the
        statistics of the batch norms are the running ones, where 200 batches were averaged anew before a test.
    """
    return {"optimiser": _optimiser(detector), "workers": 4}


def cutler_cascade_paper(detector: str) -> dict[str, Any]:
    """CutLER's first round as its paper tells it: half the rate, which is divided by 5 and not by 50."""
    return {"optimiser": _optimiser(detector, rate=0.005, gamma=0.2), "workers": 4}


def cutler_mask_rcnn(detector: str) -> dict[str, Any]:
    """CutLER's first round of a Mask R-CNN as released: the rate is divided by 10, and float32 is used."""
    return {"optimiser": _optimiser(detector, gamma=0.1), "precision": "fp32", "workers": 4}


def cutler_self_train(detector: str) -> dict[str, Any]:
    """CutLER's later rounds as released; they begin with the detector of the round before."""
    return {
        "detector": {"preset": "self_train"},
        "copy_paste": {"scale": (0.5, 1.0)},
        "optimiser": _optimiser(detector, rate=0.005, weight_decay=1e-4, milestones=(), gamma=1.0),
        "steps": 80_000,
        "workers": 4,
    }


def cutler_self_train_paper(detector: str) -> dict[str, Any]:
    """CutLER's later rounds as its paper tells them: twice the rate."""
    settings = cutler_self_train(detector)
    return {**settings, "optimiser": _optimiser(detector, rate=0.01, weight_decay=1e-4, milestones=(), gamma=1.0)}


def freesolo(detector: str) -> dict[str, Any]:
    """FreeSOLO as released: each image twice in a step, as it is and strongly varied with pasted objects.

    Reference:
        Wang et al., FreeSOLO, CVPR 2022, and its released configuration. Deviates: lengths of the short side are those
        of SOLOv2's configurations; both views of an image have one scale and one flip.
    """
    return {
        "augment": {"short_sides": (640, 672, 704, 736, 768, 800), "strong": {}},
        "optimiser": _optimiser(detector, rate=0.001, weight_decay=1e-4, milestones=(), gamma=1.0, max_norm=None),
        "precision": "fp32",
        "steps": 30_000,
        "workers": 4,
    }


def freesolo_paper(detector: str) -> dict[str, Any]:
    """FreeSOLO as its paper tells it: semantic embeddings are learned, too; `exemplars` makes it Exemplar-FreeSOLO."""
    embeddings = {"detector": {"embedding_weight": 4.0}} if detector == "solov2" else {}
    return freesolo(detector) | embeddings


def small(detector: str) -> dict[str, Any]:
    """A ResNet-18, or the transformer that `pretrain --recipe small` learns, for photographs of some 128 px on a CPU.

    Anchors and sides are a fifth of the published ones; so are the heads, which would else take most of the time.
    """
    backbone: dict[str, Any] = {"arch": "resnet18", "norm": "batch", "channels": 128}
    if detector == "vitdet":
        backbone = {"patch_size": 8, "width": 192, "depth": 12, "heads": 3, "channels": 128}
    heads = _SMALL_CELLS if detector == "solov2" else _SMALL_REGIONS
    return {
        "detector": {"backbone": backbone, **heads, "short_side": 160, "long_side": 320},
        "augment": {"short_sides": (128, 144, 160, 176, 192), "max_side": 320, **_COLOURS},
        "optimiser": _optimiser(detector, rate=0.02, gamma=0.1, milestones=(0.7, 0.9), warmup=200),
        "precision": "fp32",
        "ema": 0.999,
        "batch_size": 8,
        "steps": 6000,
        "checkpoint_every": 100,
        "watch_every": 500,
    }


def tiny(detector: str) -> dict[str, Any]:
    """A detector that learns drawn pictures of 96 px in minutes on one core; to try things out."""
    return {
        "detector": {"preset": "tiny"},
        "augment": {"short_sides": (80, 88, 96), "max_side": 160},
        "optimiser": _optimiser(detector, rate=0.05, gamma=0.1, milestones=(0.7, 0.9), warmup=20),
        "precision": "fp32",
        "ema": 0.98,
        "batch_size": 4,
        "steps": 300,
        "checkpoint_every": 25,
        "watch_every": 100,
    }


_SMALL_REGIONS: dict[str, Any] = {
    "rpn": {
        "sizes": (12, 24, 48, 96, 160),
        "samples": 128,
        **{"level_train": 500, "level_test": 300, "train": 500, "test": 300},
    },
    "box_head": {"width": 512, "samples": 128},
    "mask_head": {"layers": 3, "channels": 64},
}
_SMALL_CELLS: dict[str, Any] = {
    "grids": (24, 20, 16, 12, 8),
    "ranges": ((1, 20), (10, 40), (20, 80), (40, 160), (80, 2048)),
    "min_areas": (2, 2, 4, 8, 8),
    **{"layers": 3, "width": 128, "kernel": 64, "feature_width": 64},
    "weak": {"bottom": 2},
}
_COLOURS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}


def _optimiser(detector: str, **settings: Any) -> dict[str, Any]:
    """A transformer is trained by AdamW, at ViTDet's rate and weight decay; the rest of the schedule stays."""
    if detector == "vitdet":
        settings |= {"name": "adamw", "rate": 1e-4, "weight_decay": 0.1}
    return settings


_DENSECL = "DenseCL's ResNet-101 (densecl_r101_imagenet_200ep.pth)"
_DINO = "DINO's ResNet-50 (dino_resnet50_pretrain.pth)"
RECIPES: dict[str, Recipe] = {
    "cutler_cascade": Recipe(
        "Cascade Mask R-CNN, ResNet-50, 160,000 steps of 16 images: CutLER's first round, as released",
        *("cascade_mask_rcnn", cutler_cascade, _DINO),
    ),
    "cutler_cascade_paper": Recipe(
        "the same at the paper's rates", *("cascade_mask_rcnn", cutler_cascade_paper, _DINO)
    ),
    "cutler_mask_rcnn": Recipe(
        "Mask R-CNN, ResNet-50, 160,000 steps of 16 images: CutLER's first round, as released",
        *("mask_rcnn", cutler_mask_rcnn, _DINO),
    ),
    "cutler_mask_rcnn_paper": Recipe("the same at the paper's rates", "mask_rcnn", cutler_cascade_paper, _DINO),
    "cutler_self_train": Recipe(
        "Cascade Mask R-CNN, ResNet-50, 80,000 steps of 16 images: CutLER's later rounds, as released",
        *("cascade_mask_rcnn", cutler_self_train, "the detector of the round before"),
    ),
    "cutler_self_train_paper": Recipe(
        "the same at the paper's rate",
        *("cascade_mask_rcnn", cutler_self_train_paper, "the detector of the round before"),
    ),
    "freesolo": Recipe(
        "SOLOv2, ResNet-101, 30,000 steps of 16 images: FreeSOLO, as released", "solov2", freesolo, _DENSECL
    ),
    "freesolo_paper": Recipe(
        "the same with the paper's semantic embeddings, and Exemplar-FreeSOLO", "solov2", freesolo_paper, _DENSECL
    ),
    "small": Recipe(
        "Mask R-CNN, ResNet-18, 128 to 192 px, 6,000 steps of 8 images: small photographs on a CPU", "mask_rcnn", small
    ),
    "tiny": Recipe("Mask R-CNN, ResNet-18, 80 to 96 px, 300 steps of 4 images: to try things out", "mask_rcnn", tiny),
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
