"""Files as others publish them, made here: detectron2's detectors, and backbones under everybody's names."""

import re

import torch

from figureground.detectors import configure, create
from figureground.detectors.rcnn import RCNN

# A detector of detectron2's structure, small.
SMALL = {
    "backbone": {"arch": "resnet18", "channels": 8},
    "box_head": {"width": 16},
    "mask_head": {"channels": 8},
    "short_side": None,
}


def small(kind: str = "mask_rcnn", seed: int = 0, **changes) -> RCNN:
    """One with statistics and all that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(seed)
    model = create(configure(kind, **{**SMALL, **changes}), generator)
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) * (2 if name.endswith("running_var") else 0.1))
    return model


def detectron2_name(name: str, stages: int) -> str:
    """Of one of our tensors, in detectron2's checkpoints."""
    name = re.sub(r"^backbone\.trunk\.", "backbone.bottom_up.", name)
    name = re.sub(r"up\.conv1\.", "up.stem.conv1.", name)
    name = re.sub(r"up\.bn1\.", "up.stem.conv1.norm.", name)
    name = re.sub(r"layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    for ours, theirs in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
        name = re.sub(rf"pyramid\.{ours}\.(\d)\.0", lambda m, t=theirs: f"fpn_{t}{int(m[1]) + 2}", name)
        name = re.sub(rf"pyramid\.{ours}\.(\d)\.1", lambda m, t=theirs: f"fpn_{t}{int(m[1]) + 2}.norm", name)
    number = r"\1." if stages > 1 else ""
    name = re.sub(r"^boxes\.stages\.(\d)\.(fc\d)", rf"roi_heads.box_head.{number}\2", name)
    name = re.sub(r"^boxes\.stages\.(\d)\.scores", rf"roi_heads.box_predictor.{number}cls_score", name)
    name = re.sub(r"^boxes\.stages\.(\d)\.deltas", rf"roi_heads.box_predictor.{number}bbox_pred", name)
    name = re.sub(r"^masks\.convs\.(\d)", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}", name)
    name = name.replace("masks.enlarge", "roi_heads.mask_head.deconv")
    name = name.replace("masks.predictor", "roi_heads.mask_head.predictor")
    name = name.replace("rpn.conv", "proposal_generator.rpn_head.conv")
    name = name.replace("rpn.objectness", "proposal_generator.rpn_head.objectness_logits")
    return name.replace("rpn.deltas", "proposal_generator.rpn_head.anchor_deltas")


def detectron2_state(model: RCNN) -> dict[str, torch.Tensor]:
    stages = len(model.config.stages)
    return {detectron2_name(name, stages): value for name, value in model.state_dict().items()}
