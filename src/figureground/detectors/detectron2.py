"""Checkpoints of detectron2's Mask R-CNN and Cascade Mask R-CNN, as CutLER and others publish them, without detectron2.

The names were read from the list of keys of the official checkpoints.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from figureground.config import build, merge
from figureground.detectors.cascade_mask_rcnn import CascadeMaskRCNN
from figureground.detectors.interface import MEAN
from figureground.detectors.mask_rcnn import MaskRCNN
from figureground.detectors.rcnn import RCNN
from figureground.detectors.weights import State, fill, read_state
from figureground.errors import WeightsError

# Their name, ours; the first that fits. What fits none keeps its name, and then fits nothing.
_TRUNK = (
    (r"^stem\.conv1\.norm\.", r"bn1."),
    (r"^stem\.conv1\.", r"conv1."),
    (r"^res(\d)\.(\d+)\.shortcut\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.1."),
    (r"^res(\d)\.(\d+)\.shortcut\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.0."),
    (r"^res(\d)\.(\d+)\.conv(\d)\.norm\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}."),
    (r"^res(\d)\.(\d+)\.conv(\d)\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.conv{m[3]}."),
)
_HEADS = (
    (r"^backbone\.fpn_lateral(\d)\.norm\.", lambda m: f"backbone.pyramid.inner_blocks.{int(m[1]) - 2}.1."),
    (r"^backbone\.fpn_lateral(\d)\.", lambda m: f"backbone.pyramid.inner_blocks.{int(m[1]) - 2}.0."),
    (r"^backbone\.fpn_output(\d)\.norm\.", lambda m: f"backbone.pyramid.layer_blocks.{int(m[1]) - 2}.1."),
    (r"^backbone\.fpn_output(\d)\.", lambda m: f"backbone.pyramid.layer_blocks.{int(m[1]) - 2}.0."),
    (r"^proposal_generator\.rpn_head\.conv\.", r"rpn.conv."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", r"rpn.objectness."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", r"rpn.deltas."),
    # With one stage there is no number.
    (r"^roi_heads\.box_head\.(?:(\d)\.)?fc(\d)\.", lambda m: f"boxes.stages.{m[1] or 0}.fc{m[2]}."),
    (r"^roi_heads\.box_predictor\.(?:(\d)\.)?cls_score\.", lambda m: f"boxes.stages.{m[1] or 0}.scores."),
    (r"^roi_heads\.box_predictor\.(?:(\d)\.)?bbox_pred\.", lambda m: f"boxes.stages.{m[1] or 0}.deltas."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"masks.convs.{int(m[1]) - 1}."),
    (r"^roi_heads\.mask_head\.deconv\.", r"masks.enlarge."),
    (r"^roi_heads\.mask_head\.predictor\.", r"masks.predictor."),
)
_BOTTOM_UP = "backbone.bottom_up."


def load(path: Path, **changes: Any) -> RCNN:
    """Build the detector of an official checkpoint.

    Args:
        path: A ``.pth``, or a ``.pkl`` of NumPy arrays.
        changes: Fields of the configuration that differ from CutLER's first round.

    Returns:
        A Cascade Mask R-CNN or a Mask R-CNN, whichever the weights are of, in evaluation mode.

    Raises:
        WeightsError: If the file cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    state = read_state(path)
    _check_colours(state, path)
    classifier = next((value for name, value in state.items() if name.endswith("cls_score.weight")), None)
    if classifier is None:
        raise WeightsError(
            f"{path} holds no detector.", "For the weights of a backbone alone, build a detector and load them into it."
        )
    detector = CascadeMaskRCNN if "roi_heads.box_head.0.fc1.weight" in state else MaskRCNN
    default = detector.PRESETS["default"].replace(categories=len(classifier) - 1)
    model = detector(build(type(default), merge(default.model_dump(), changes)))
    fill(model, convert(state), str(path), "Known are ResNet-50 detectors with a pyramid, as CutLER's.")
    return model.eval()


def convert(state: State) -> State:
    """A detector's tensors under this package's names; constants that follow from the configuration are left out."""
    constant = re.compile(r"^pixel_(mean|std)$|cell_anchors")
    renamed = {}
    for name, value in state.items():
        if name.startswith(_BOTTOM_UP):
            renamed[f"backbone.trunk.{_rename(name.removeprefix(_BOTTOM_UP), _TRUNK)}"] = value
        elif not constant.search(name):
            renamed[_rename(name, _HEADS)] = value
    return renamed


def convert_trunk(state: State) -> State:
    """A ResNet's tensors under torchvision's names; those that have them already keep them."""
    return {_rename(name.removeprefix(_BOTTOM_UP), _TRUNK): value for name, value in state.items()}


def _rename(name: str, rules: Any) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def _check_colours(state: dict[str, Tensor], path: Path) -> None:
    """Older files say how images were normalised; most of detectron2's own models see BGR."""
    mean = state.get("pixel_mean")
    if mean is not None and not torch.allclose(mean.flatten().float(), 255 * torch.tensor(MEAN), atol=0.5):
        raise WeightsError(
            f"{path} was trained on images with the mean {mean.flatten().tolist()}; this program normalises RGB by "
            "ImageNet's.",
            "Only detectors of RGB images can be loaded, as CutLER's.",
        )
