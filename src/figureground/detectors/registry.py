"""Every detector there is, by name."""

import difflib
from typing import Annotated, Any

import torch
from pydantic import Field

from figureground.config import build, merge
from figureground.detectors.cascade_mask_rcnn import CascadeMaskRCNN, CascadeMaskRCNNConfig
from figureground.detectors.interface import Detector
from figureground.detectors.mask_rcnn import MaskRCNN, MaskRCNNConfig
from figureground.detectors.solov2 import SOLOv2, SOLOv2Config
from figureground.detectors.vitdet import ViTDet, ViTDetConfig
from figureground.errors import UsageError

DETECTORS: dict[str, type[Detector]] = {
    "mask_rcnn": MaskRCNN,
    "cascade_mask_rcnn": CascadeMaskRCNN,
    "vitdet": ViTDet,
    "solov2": SOLOv2,
}

# A field of this type in a configuration is the detector's own, told apart by its `detector`.
DetectorConfig = Annotated[
    MaskRCNNConfig | CascadeMaskRCNNConfig | ViTDetConfig | SOLOv2Config, Field(discriminator="detector")
]


def configure(detector: str, preset: str = "default", **changes: Any) -> DetectorConfig:
    """Configuration of a detector.

    Args:
        detector: A key of :data:`DETECTORS`.
        preset: One of the detector's.
        changes: Fields that differ from the preset; of nested ones only what differs.

    Raises:
        UsageError: If there is no such detector or preset.
        ConfigError: If a field does not exist or its value is out of range.

    Example:
        >>> configure("cascade_mask_rcnn", "self_train", rpn={"train": 2000}).rpn.nms
        0.7
    """
    if detector not in DETECTORS:
        near = difflib.get_close_matches(detector, DETECTORS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"There is no detector {detector!r}.{hint} There are: {', '.join(DETECTORS)}.")
    presets = DETECTORS[detector].PRESETS
    if preset not in presets:
        raise UsageError(f"{detector} has no preset {preset!r}; it has: {', '.join(presets)}.")
    chosen = presets[preset]
    return build(type(chosen), merge(chosen.model_dump(), changes))


def create(config: DetectorConfig, generator: torch.Generator | None = None) -> Detector:
    """Make a detector, in training mode, on the CPU.

    Args:
        config: As :func:`configure` makes it; it says which.
        generator: Draws the first weights; none: seed 0.
    """
    return DETECTORS[config.detector](config, generator)
