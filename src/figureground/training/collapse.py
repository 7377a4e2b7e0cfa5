"""The ways in which self-distillation comes to nothing, told apart while there is still time."""

import math

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from figureground.config import Config
from figureground.errors import RunError


class CollapseConfig(Config):
    """When the teacher says the same of every image; measured on the images of one step."""

    after_steps: int = Field(
        default=2500, ge=0, description="From when on a collapse is an error; an untrained network looks much like one."
    )
    uniform: float = Field(
        default=0.999, gt=0, le=1, description="Entropy of single outputs, as a share of log K, that is as good as 1."
    )
    dominant: float = Field(
        default=0.02, ge=0, lt=1, description="Entropy of the mean output, as a share of log K, that is as good as 0."
    )
    spread: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="Standard deviation of the unit features, times the root of their width, that is as good as 0.",
    )


@torch.no_grad()
def measure_collapse(chances: Float[Tensor, "B K"], features: Float[Tensor, "B D"]) -> dict[str, float]:
    """How much a teacher's outputs and features differ among images.

    Args:
        chances: Its outputs after the softmax.
        features: What they were computed from.

    Returns:
        ``entropy``: mean entropy of the outputs, as a share of log K; 1 where each is uniform. ``mean_entropy``:
        entropy of the mean output; 0 where all images have one and the same. ``spread``: standard deviation of the unit
        features, averaged, times the root of their width; 0 where all images have the same.

    Reference:
        Caron et al., ICCV 2021, section 5.3; the last, Chen and He, SimSiam, CVPR 2021, section 4.1.
    """
    full = math.log(chances.shape[1])
    unit = functional.normalize(features, dim=-1)
    return {
        "entropy": float(_entropy(chances).mean()) / full,
        "mean_entropy": float(_entropy(chances.mean(0))) / full,
        "spread": float(unit.std(0, correction=0).mean()) * math.sqrt(unit.shape[1]),
    }


def check_collapse(measured: dict[str, float], step: int, config: CollapseConfig) -> None:
    """Stop a run that teaches itself nothing any more.

    Args:
        measured: As :func:`measure_collapse` finds it.
        step: Of the measurement.
        config: What is as good as collapsed.

    Raises:
        RunError: Which of the collapses it is, and what helps.

    Reference:
        Caron et al., ICCV 2021, sections 3.1 and 5.3: centring works against one output, sharpening against all alike.
    """
    if step < config.after_steps:
        return
    entropy, mean_entropy, spread = measured["entropy"], measured["mean_entropy"], measured["spread"]
    if mean_entropy <= config.dominant:
        what = f"one output takes all images (entropy of the mean output {mean_entropy:.3f} of log K)"
        remedy = "Let the centre follow faster (--set dino.centre_momentum=0.8), or raise the teacher's temperature"
        remedy += " (--set dino.teacher_temperature_start=...)."
    elif entropy >= config.uniform:
        what = f"all outputs are alike for every image (entropy {entropy:.4f} of log K)"
        remedy = "Sharpen the teacher (--set dino.teacher_temperature=0.04), or lower the rate (--set dino.rate=...)."
    elif spread <= config.spread:
        what = f"all images have the same features (their spread is {spread:.4f})"
        remedy = "Lower the rate (--set dino.rate=...), or warm up for longer (--set dino.warmup_epochs=...)."
    else:
        return
    raise RunError(f"Training has collapsed: at step {step}, {what}.", f"{remedy} Start anew with another --out.")


def _entropy(chances: Float[Tensor, "... K"]) -> Float[Tensor, "..."]:
    return -(chances * chances.clamp(min=torch.finfo(chances.dtype).tiny).log()).sum(-1)
