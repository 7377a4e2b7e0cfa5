"""What `train` puts together: examples into batches, a detector with its average, first weights, the optimiser."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

import safetensors
from jaxtyping import UInt8
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, AdamW, Optimizer

from figureground import backbones
from figureground.config import Config
from figureground.data.augment import AugmentConfig, augment
from figureground.data.copy_paste import CopyPasteConfig, copy_paste
from figureground.data.pseudo_labels import Failures, PseudoLabels
from figureground.data.strong import vary_strongly
from figureground.data.targets import Targets
from figureground.detectors import DetectorConfig, load, load_backbone
from figureground.detectors.checkpoint import is_detector
from figureground.detectors.interface import Detector
from figureground.detectors.solov2 import SOLOv2Config
from figureground.detectors.weights import fill, read_state
from figureground.errors import UsageError, WeightsError
from figureground.stages.detecting import DETECTOR_FILE
from figureground.stages.instance_embeddings import EmbedderConfig
from figureground.training.ema import Ema
from figureground.training.order import generator_for
from figureground.training.schedules import warmup_steps

# Images that are looked for before training begins.
_LOOKED_FOR = 64
BACKBONE_FILE = "backbone.safetensors"
# The views of an image, what is in it, and the number of the draw.
Example = tuple[list[UInt8[Tensor, "3 _ _"]], Targets, int]
# Images, what is in them, and the number of the batch's first draw.
Batch = tuple[list[UInt8[Tensor, "3 _ _"]], list[Targets], int]


class OptimiserConfig(Config):
    """How weights follow from gradients; the defaults are those of CutLER's first round as released."""

    name: Literal["sgd", "adamw"] = Field(default="sgd", description="(CutLER: sgd; ViTDet: adamw).")
    rate: float = Field(
        default=0.01, gt=0, description="Learning rate (CutLER: 0.01 released, 0.005 in the paper; ViTDet: 1e-4)."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of SGD; AdamW's first beta (CutLER, ViTDet: 0.9).")
    weight_decay: float = Field(
        default=5e-5, ge=0, description="Not of norms and positions (CutLER: 5e-5; self-training 1e-4; ViTDet: 0.1)."
    )
    warmup: int = Field(default=1000, ge=0, description="Steps until the whole rate is reached (CutLER: 1000).")
    warmup_factor: float = Field(default=0.001, ge=0, le=1, description="Of the rate at step 0 (CutLER: 0.001).")
    milestones: tuple[float, ...] = Field(
        default=(0.5,),
        description="Shares of the steps after which the rate is lowered (CutLER: 80,000 of 160,000 steps).",
    )
    gamma: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="What the rate is multiplied by at each (CutLER: 0.02 released, 0.2 in the paper).",
    )
    max_norm: float | None = Field(
        default=1.0, gt=0, description="The gradient is scaled down to this norm; none: left alone (CutLER: 1)."
    )

    @field_validator("milestones")
    @classmethod
    def _shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < share < 1 for share in shares):
            raise ValueError(f"Configuration key 'optimiser.milestones': shares of the steps, in (0, 1), got {shares}.")
        return shares


def make_optimiser(detector: Detector, config: OptimiserConfig) -> Optimizer:
    """An optimiser of what is to be learned in a detector; norms and positions have no weight decay."""
    kept: set[int] = set()
    for module in detector.modules():
        if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
            kept.update(id(parameter) for parameter in module.parameters(recurse=False))
    kept.update(id(value) for name, value in detector.named_parameters() if name.endswith("pos_embed"))
    learned = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in learned if id(each) not in kept], "weight_decay": config.weight_decay},
        {"params": [each for each in learned if id(each) in kept], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return SGD(groups, lr=config.rate, momentum=config.momentum)
    return AdamW(groups, lr=config.rate, betas=(config.momentum, 0.999))


def rate_schedule(config: OptimiserConfig, steps: int) -> Callable[[int], float]:
    """From the number of a step to what the rate is multiplied by."""
    milestones = [round(share * steps) for share in config.milestones]
    return warmup_steps(milestones, config.gamma, config.warmup, config.warmup_factor)


class Learner(nn.Module):
    """A detector that is trained and, where one is wanted, its moving average: what a checkpoint holds.

    Args:
        detector: To be trained.
        momentum: Of the average; none: there is none.

    Attributes:
        best: The average, or else the detector itself: what is measured and kept.
    """

    def __init__(self, detector: Detector, momentum: float | None) -> None:
        super().__init__()
        self.detector = detector
        self.average = None if momentum is None else Ema(detector)
        self._momentum = momentum or 0.0

    @property
    def best(self) -> Detector:
        """See the class."""
        chosen: Any = self.detector if self.average is None else self.average.module
        return chosen

    def after_update(self, step: int) -> None:
        """Move the average; slowly only once there is something to average."""
        if self.average is not None:
            self.average.update(min(self._momentum, (step + 1) / (step + 10)))


class Examples:
    """Images and their pseudo-labels, varied at random and put together as batches; picklable, for the workers.

    Every draw is a function of the seed and the number of the draw.

    Args:
        labels: What is learned from.
        augmentation: How images are varied.
        pasting: How objects are pasted; none: they are not.
        seed: Of all draws.
        paste_later: Leave pasting to :meth:`paste`, on another device.
    """

    def __init__(
        self,
        labels: PseudoLabels,
        augmentation: AugmentConfig,
        pasting: CopyPasteConfig | None,
        seed: int,
        paste_later: bool,
    ) -> None:
        self.labels, self.augmentation, self.pasting = labels, augmentation, pasting
        self.seed, self.paste_later = seed, paste_later

    def __call__(self, index: int, draw: int) -> Example:
        """The image at a place, varied by a draw."""
        pixels, targets = self.labels.example(index)
        image, targets = augment(pixels, targets, self.augmentation, generator_for(self.seed, "augment", draw))
        strong = self.augmentation.strong
        if strong is None:
            return [image], targets, draw
        return [vary_strongly(image, strong, generator_for(self.seed, "strong", draw)), image], targets, draw

    def collate(self, examples: Sequence[Example]) -> Batch:
        """A batch; objects are pasted between its images, which are those of one process.

        Where each image has two views, the strongly varied ones of all images stand first.
        """
        views, targets, draws = zip(*examples, strict=True)
        images = [image for alike in zip(*views, strict=True) for image in alike]
        batch = images, [*targets] * len(views[0]), draws[0]
        return batch if self.paste_later else self.paste(batch)

    def paste(self, batch: Batch) -> Batch:
        """Paste objects between the images of a batch, on their device; between the strongly varied, if there are."""
        if self.pasting is None:
            return batch
        images, targets, draw = batch
        count = len(images) if self.augmentation.strong is None else len(images) // 2
        generator = generator_for(self.seed, "copy-paste", draw)
        pasted, joined = copy_paste(images[:count], targets[:count], self.pasting, generator)
        return [*pasted, *images[count:]], [*joined, *targets[count:]], draw


def to_device(batch: Batch, device: str) -> Batch:
    """A batch on a device."""
    images, targets, draw = batch

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return (
        [moved(image) for image in images],
        [cast(Targets, {key: moved(cast(Tensor, value)) for key, value in own.items()}) for own in targets],
        draw,
    )


class Report:
    """Takes what cannot be used; keeps it until there is a file to name it in."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, str]] = []
        self._failures: Failures | None = None

    def __call__(self, path: str, error: str) -> None:
        """Name one."""
        if self._failures is None:
            self._kept.append((path, error))
        else:
            self._failures(path, error)

    def write_to(self, path: Path) -> None:
        """From here on to ``failures.jsonl``, what was kept included."""
        self._failures = Failures(path)
        for path_and_error in self._kept:
            self._failures(*path_and_error)


def check_labels(labels: PseudoLabels) -> None:
    """Look whether the images are where they are looked for.

    Raises:
        UsageError: If none of the first images is there.
    """
    some = [labels.name(index) for index in range(min(len(labels), _LOOKED_FOR))]
    if not any((labels.images / name).is_file() for name in some):
        raise UsageError(
            f"The images of the pseudo-labels are not in {labels.images}: there is no {some[0]!r}"
            + (f", nor any other of the first {len(some)}." if len(some) > 1 else "."),
            "Give the folder that their file names are relative to, as it was given to `label`.",
        )


def fit_to_labels(config: DetectorConfig, labels: PseudoLabels) -> DetectorConfig:
    """A detector's configuration with the categories of what it is to learn.

    Raises:
        UsageError: If it has others already.
    """
    if labels.config.class_agnostic:
        return config
    count, names = len(labels.categories), labels.categories
    if config.categories not in (1, count) or config.names not in (None, names):
        told_apart = ", ".join((config.names or {}).values()) or str(config.categories)
        raise UsageError(
            f"The detector has other categories ({told_apart}) than {labels.file.path} ({', '.join(names.values())}).",
            "Begin without detector.categories and detector.names, which follow from the pseudo-labels.",
        )
    return config.replace(categories=count, names=names)


def fit_to_embedder(config: DetectorConfig, embedder: EmbedderConfig) -> DetectorConfig:
    """A detector's configuration with embeddings of as many numbers as what they are learned from, if they are.

    Raises:
        UsageError: If it has others already, or there is no such backbone.
    """
    if not learns_embeddings(config):
        return config
    width = backbones.find(embedder.backbone.name).width
    if config.embedding not in (None, width):
        raise UsageError(
            f"detector.embedding is {config.embedding}, and {embedder.backbone.name} describes objects by {width} "
            "numbers.",
            "Begin without detector.embedding, or with the embedder that the detector has learned from.",
        )
    return config.replace(embedding=width)


def learns_embeddings(config: DetectorConfig) -> TypeGuard[SOLOv2Config]:
    """Whether a detector's targets need embeddings."""
    return isinstance(config, SOLOv2Config) and config.embedding_weight > 0


def weights_file(source: str) -> Path | None:
    """The file of first weights, in the folder of a run or by itself; ``None`` where the source is a name.

    Raises:
        WeightsError: If it is a folder without weights.
    """
    path = Path(source)
    if path.is_dir():
        found = [path / name for name in (DETECTOR_FILE, BACKBONE_FILE) if (path / name).is_file()]
        if not found:
            raise WeightsError(
                f"{path} holds neither {DETECTOR_FILE} nor {BACKBONE_FILE}.",
                "Give the folder of a training that has ended, or a file of weights.",
            )
        path = found[0]
    return path if path.is_file() else None


def load_weights(detector: Detector, source: str) -> None:
    """Give a detector the weights to begin with.

    Args:
        detector: Any.
        source: A detector of the same architecture (a file, or the folder of a training), which is taken whole; or a
            backbone (a file, a name, or the folder of `pretrain`), see
            :func:`figureground.detectors.load_backbone`.

    Raises:
        WeightsError: If the weights cannot be had or do not fit.
    """
    path = weights_file(source)
    if path is not None and _is_detector(path):
        fill(detector, load(path).state_dict(), f"The detector in {path}", "Begin with one of the same --detector.")
    else:
        load_backbone(detector, path or source)


def _is_detector(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return any(name.endswith("cls_score.weight") for name in read_state(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return is_detector(file.metadata())
    except Exception:  # damaged: whoever reads it says how
        return False
