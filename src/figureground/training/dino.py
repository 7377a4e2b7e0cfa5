"""DINO: a student learns to say of small crops what its own moving average says of large ones.

Caron et al.: Emerging properties in self-supervised vision transformers. ICCV 2021. Written from the paper. With
``patches.weight`` it is iBOT (Zhou et al., ICLR 2022; :mod:`figureground.training.ibot`).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from figureground.backbones.own import Shape, Stem
from figureground.config import Config
from figureground.errors import ConfigError
from figureground.training.collapse import CollapseConfig, check_collapse, measure_collapse
from figureground.training.distributed import mean_
from figureground.training.ema import Ema
from figureground.training.ibot import IbotConfig, block_masks, hidden_patches, patch_loss, patch_weights
from figureground.training.schedules import cosine


class VitConfig(Config):
    """The network that is learned; the defaults are ViT-S/16."""

    patch_size: int = Field(default=16, ge=2, le=64, description="Side of a patch, px (paper: 16 and 8).")
    image_size: int = Field(
        default=224, ge=8, le=1024, description="Side in px of the images that positions are learned for (paper: 224)."
    )
    width: int = Field(default=384, ge=8, description="Length of a token (paper: 384 and 768).")
    depth: int = Field(default=12, ge=1, description="Blocks (paper: 12).")
    heads: int = Field(default=6, ge=1, description="Of attention, which divide the width (paper: 6 and 12).")
    stem: Stem = Field(
        default="patch", description="How patches become tokens: `patch`, one convolution (paper), or `conv`, a few."
    )
    drop_path: float = Field(default=0.1, ge=0, lt=1, description="Of the student, at the last block (paper: 0.1).")

    @property
    def shape(self) -> Shape:
        """What is kept of it."""
        return Shape(**self.model_dump(exclude={"drop_path"}))


class HeadConfig(Config):
    """The projection between the network and the loss; thrown away at the end."""

    outputs: int = Field(default=65536, ge=2, description="Of the last layer, K in the paper (paper: 65536).")
    hidden: int = Field(default=2048, ge=2, description="Width of the hidden layers (paper: 2048).")
    bottleneck: int = Field(default=256, ge=2, description="Width before the last layer (paper: 256).")
    layers: int = Field(default=3, ge=1, le=8, description="Before the last layer, GELU between them (paper: 3).")
    fixed_norm: bool = Field(
        default=False,
        description="Whether the last layer's rows keep length 1: steadier, for large networks (paper: ViT-S no, ViT-B "
        "yes).",
    )


class DinoConfig(Config):
    """Everything of the method but the images; the defaults are published for ViT-S/16."""

    vit: VitConfig = VitConfig()
    head: HeadConfig = HeadConfig()
    patches: IbotConfig = IbotConfig()
    collapse: CollapseConfig = CollapseConfig()
    student_temperature: float = Field(default=0.1, gt=0, description="Of the student's softmax (paper: 0.1).")
    teacher_temperature: float = Field(default=0.07, gt=0, description="Of the teacher's, in the end (paper: 0.07).")
    teacher_temperature_start: float = Field(
        default=0.04, gt=0, description="Of the teacher's, at first (paper: 0.04)."
    )
    teacher_temperature_epochs: float = Field(default=30, ge=0, description="From one to the other (paper: 30).")
    centre_momentum: float = Field(default=0.9, ge=0, lt=1, description="Of the teacher's centre (paper: 0.9).")
    momentum: float = Field(
        default=0.996, ge=0, le=1, description="Of the teacher, at first; 1 in the end, by a cosine (paper: 0.996)."
    )
    rate: float = Field(
        default=5e-4, gt=0, description="Learning rate of AdamW for 256 images a step; grows with them (paper: 5e-4)."
    )
    rate_end: float = Field(default=1e-6, ge=0, description="In the end, by a cosine (paper: 1e-6).")
    warmup_epochs: float = Field(default=10, ge=0, description="In which the rate rises from 0 (paper: 10).")
    weight_decay: float = Field(default=0.04, ge=0, description="Of AdamW, at first; not of biases (paper: 0.04).")
    weight_decay_end: float = Field(default=0.4, ge=0, description="In the end, by a cosine (paper: 0.4).")
    freeze_epochs: float = Field(default=1, ge=0, description="First ones, without the last layer (paper: 1).")
    max_norm: float = Field(default=3.0, gt=0, description="Of the gradient of each parameter (paper: 3).")
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="Of the images' RGB, in [0, 1]."
    )
    std: tuple[float, float, float] = Field(default=(0.229, 0.224, 0.225), description="Of the same.")
    precision: Literal["bf16", "fp32"] = Field(
        default="bf16", description="Of the products in the network; losses are fp32 (paper: fp16)."
    )


class Head(nn.Module):
    """From features to K outputs: a perceptron, a unit vector, and its products with K weight-normalised rows.

    Args:
        width: Of the features.
        config: Layers and sizes.

    Reference:
        Caron et al., ICCV 2021, section 3.1 and appendix C; weight normalisation: Salimans and Kingma, NeurIPS 2016.
    """

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        widths = [width, *[config.hidden] * (config.layers - 1), config.bottleneck]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            linear = nn.Linear(inputs, outputs)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        self.perceptron = nn.Sequential(*layers[:-1])
        # Only their directions count, and a normal vector has every direction alike; but AdamW's steps are of one size,
        # so that the longer they are the slower they turn. 0.05 is what weight normalisation was published with.
        self.directions = nn.Parameter(0.05 * torch.randn(config.outputs, config.bottleneck))
        self.lengths = None if config.fixed_norm else nn.Parameter(torch.ones(config.outputs))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """The outputs, before any temperature."""
        unit = functional.normalize(self.perceptron(features), dim=-1)
        rows = functional.normalize(self.directions, dim=-1)
        if self.lengths is not None:
            rows = rows * self.lengths[:, None]
        return functional.linear(unit, rows).float()

    def freeze(self, frozen: bool) -> None:
        """Leave the last layer out of training, or take it in: without a gradient, the optimiser passes it over."""
        for parameter in (self.directions, self.lengths):
            if parameter is not None:
                parameter.requires_grad_(not frozen)


class Network(nn.Module):
    """A backbone with what the loss needs around it; student and teacher are one each.

    Args:
        config: Of the whole.
        drop_path: Of the backbone.

    Raises:
        ConfigError: If its sizes do not fit together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DinoConfig, drop_path: float) -> None:
        super().__init__()
        try:
            self.backbone: Any = config.vit.shape.build(drop_path)
        except ValueError as error:
            raise ConfigError(f"The network cannot be built as `dino.vit.*` says: {error}.") from None
        width = config.vit.width
        self.head = Head(width, config.head)
        self.patch_head: Head | None = None
        self.mask_token: nn.Parameter | None = None
        if config.patches.weight:
            self.mask_token = nn.Parameter(torch.zeros(width))
            if config.patches.head == "own":
                self.patch_head = Head(width, config.head)
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def forward(
        self, images: Float[Tensor, "B 3 _ _"], masks: Bool[Tensor, "B h w"] | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B N D"]]:
        """The features of the CLS token and of the patches; those in ``masks`` are hidden."""
        with self._hiding(masks):
            tokens = self.backbone.forward_features((images - self.mean) / self.std)
        return tokens[:, 0], tokens[:, 1:]

    @contextlib.contextmanager
    def _hiding(self, masks: Bool[Tensor, "B h w"] | None) -> Iterator[None]:
        """Put the mask token in the place of embedded patches, before positions are added."""
        if masks is None:
            yield
            return

        def hide(module: nn.Module, inputs: Any, patches: Tensor) -> Tensor:
            assert self.mask_token is not None
            return torch.where(masks[..., None], self.mask_token.to(patches.dtype), patches)

        handle = self.backbone.patch_embed.register_forward_hook(hide)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, slots=True)
class Schedules:
    """What changes while DINO trains, each a function of the step.

    Attributes:
        rate: Of the optimiser, as a share of its highest.
        decay: Weight decay.
        momentum: Of the teacher.
        temperature: Of the teacher.
        frozen: Whether the head's last layer is left out.
    """

    rate: Callable[[int], float]
    decay: Callable[[int], float]
    momentum: Callable[[int], float]
    temperature: Callable[[int], float]
    frozen: Callable[[int], bool]


def schedules(config: DinoConfig, steps: int, epoch_steps: float, peak_rate: float) -> Schedules:
    """Those of a run.

    Args:
        config: Their ends, and how many epochs they take.
        steps: Of the run.
        epoch_steps: Steps an epoch takes.
        peak_rate: The optimiser's highest learning rate.

    Raises:
        ConfigError: If the warm-up takes the whole run or longer.

    Reference:
        Caron et al., ICCV 2021, section 3.2. Deviates: the teacher's temperature rises with every step, not epoch.
    """
    warmup = round(config.warmup_epochs * epoch_steps)
    if warmup >= steps:
        raise ConfigError(
            f"The learning rate is to rise for {config.warmup_epochs:g} epochs, which are {warmup} steps, but there are"
            f" {steps} steps in all.",
            "Train longer (--set epochs=...), or shorten the warm-up (--set dino.warmup_epochs=...).",
        )
    low, high = config.teacher_temperature_start, config.teacher_temperature
    rising = config.teacher_temperature_epochs * epoch_steps
    return Schedules(
        rate=cosine(1, config.rate_end / peak_rate, steps, warmup),
        decay=cosine(config.weight_decay, config.weight_decay_end, steps),
        momentum=cosine(config.momentum, 1, steps),
        temperature=lambda step: low + (high - low) * min(step / rising, 1) if rising else high,
        frozen=lambda step: step < config.freeze_epochs * epoch_steps,
    )


def dino_loss(
    student: Float[Tensor, "V B K"],
    teacher: Float[Tensor, "T B K"],
    centre: Float[Tensor, "K"],
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the student on each view to the teacher on each other view.

    Args:
        student: Outputs on all views, those that the teacher sees first.
        teacher: Outputs on the large views.
        centre: Taken from the teacher's outputs.
        student_temperature: The softmax of which learns.
        teacher_temperature: The softmax of which teaches; lower, so that it is sharper.

    Reference:
        Caron et al., ICCV 2021, equation 3 and algorithm 1.
    """
    targets = ((teacher - centre) / teacher_temperature).softmax(-1)
    predicted = (student / student_temperature).log_softmax(-1)
    # Image by image: one sum over all of them would run over millions of products, inexactly and on one core of a GPU.
    each = -torch.einsum("tbk,vbk->btv", targets, predicted).mean(0)
    pairs = each.numel() - len(teacher)
    return (each.sum() - each.diagonal().sum()) / pairs


class Dino(nn.Module):
    """Student, teacher and centre: all that training changes.

    Args:
        config: Of the method.
        course: What changes as it trains.
        generator: Of the first weights.

    Attributes:
        student: What is trained.
        teacher: Its moving average; what is kept in the end.
        centre: Moving mean of the teacher's outputs.
        patch_centre: The same for hidden patches.
    """

    teacher: Any  # an Ema of the student
    centre: Tensor
    patch_centre: Tensor

    def __init__(self, config: DinoConfig, course: Schedules, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.course = config, course
        with seeded(generator):
            self.student = Network(config, config.vit.drop_path)
        self.teacher = Ema(self.student)
        self.register_buffer("centre", torch.zeros(config.head.outputs))
        self.register_buffer("patch_centre", torch.zeros(config.head.outputs))
        # Of the last step, for the centres and for `measure`.
        self._outputs: dict[str, Tensor] = {}
        self.train()

    def train(self, mode: bool = True) -> "Dino":
        """As usual, but for the teacher, whose blocks are never dropped."""
        super().train(mode)
        self.teacher.eval()
        return self

    def use(self, device: torch.device) -> "Dino":
        """Move to a device, and attend in the way that is fastest there."""
        for network in (self.student, self.teacher.module):
            choose_attention(network.backbone, device, self.config.precision)
        return self.to(device)

    @property
    def backbone(self) -> nn.Module:
        """The teacher's, which is what a run is for."""
        return self.teacher.module.backbone

    def losses(
        self, views: Sequence[Float[Tensor, "B 3 _ _"]], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            views: Of the same images each, the two large ones first, then the small ones, all of one size.
            step: From 0.
            generator: Of the masks and of the blocks that are dropped.
        """
        config = self.config
        temperature = self.course.temperature(step)
        for head in (self.student.head, self.student.patch_head):
            if head is not None:
                head.freeze(self.course.frozen(step))
        large = torch.cat(list(views[:2]))
        masks = self._masks(large, generator)
        automatic = torch.autocast(large.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        with automatic, torch.no_grad():
            features, patches = self.teacher.module(large)
            teacher = self.teacher.module.head(features)
            self._outputs = {"teacher": teacher, "features": features.float()}
        with automatic, seeded(generator, large.device):
            student, seen = self.student(large, None if masks is None else masks.to(large.device))
            if len(views) > 2:
                student = torch.cat([student, self.student(torch.cat(list(views[2:])))[0]])
            outputs = self.student.head(student)
        losses = {
            "views": dino_loss(
                outputs.unflatten(0, (len(views), -1)),
                teacher.unflatten(0, (2, -1)),
                self.centre,
                config.student_temperature,
                temperature,
            )
        }
        if masks is not None:
            with automatic:
                losses["patches"] = config.patches.weight * self._patch_loss(seen, patches, masks, temperature)
        return losses

    def _masks(self, images: Tensor, generator: torch.Generator) -> Bool[Tensor, "B h w"] | None:
        patch = self.config.vit.patch_size
        if not self.config.patches.weight:
            return None
        grid = (images.shape[2] // patch, images.shape[3] // patch)
        return block_masks(len(images), grid, self.config.patches, generator)

    def _patch_loss(self, student: Tensor, teacher: Tensor, masks: Bool[Tensor, "B h w"], temperature: float) -> Tensor:
        """Only hidden patches go through the heads: they are all that counts.

        Reference:
            Zhou et al., ICLR 2022. Deviates: so the centre is the mean over hidden patches, not all.
        """
        places = hidden_patches(masks).to(student.device)
        teaching = self.teacher.module
        with torch.no_grad():
            targets = (teaching.patch_head or teaching.head)(teacher.flatten(0, 1)[places])
        self._outputs["patches"] = targets
        outputs = (self.student.patch_head or self.student.head)(student.flatten(0, 1)[places])
        return patch_loss(
            outputs,
            targets,
            patch_weights(masks).to(outputs.device),
            self.patch_centre,
            self.config.student_temperature,
            temperature,
        )

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Move the teacher to the student, and the centres to what the teacher said."""
        self.teacher.update(self.course.momentum(step))
        for name, centre in (("teacher", self.centre), ("patches", self.patch_centre)):
            if name in self._outputs:
                mean = self._outputs[name].mean(0)
                mean_([mean])
                centre.lerp_(mean, 1 - self.config.centre_momentum)

    def measure(self, step: int) -> dict[str, float]:
        """How far the teacher is from collapsing, on the images of this process's last step.

        Returns:
            As :func:`figureground.training.collapse.measure_collapse`.

        Raises:
            RunError: If it has collapsed.
        """
        outputs = (self._outputs["teacher"] - self.centre) / self.course.temperature(step)
        found = measure_collapse(outputs.softmax(-1), self._outputs["features"])
        check_collapse(found, step, self.config.collapse)
        return found


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Those of AdamW: matrices decay, biases and the weights of norms do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]


def choose_attention(backbone: Any, device: torch.device, precision: str) -> None:
    """Let timm's blocks attend in the way that is fastest: torch's fused one is slow on a CPU in bf16."""
    for block in backbone.blocks:
        block.attn.fused_attn = device.type != "cpu" or precision == "fp32"


@contextlib.contextmanager
def seeded(generator: torch.Generator, device: torch.device | None = None) -> Iterator[None]:
    """Let what draws from torch's own generators draw from this one, and leave them as they were.

    timm's blocks and first weights know no other source of randomness.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
