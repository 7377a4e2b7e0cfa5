"""`figureground found-head`: a folder of photographs to FOUND's trained head."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from figureground import backbones
from figureground.config import Config, build, merge, requested
from figureground.data.images import decode
from figureground.data.listing import ImageList, list_images
from figureground.data.resize import resize_image
from figureground.errors import ConfigError, ImageError, RunError
from figureground.proposals.found_head import FeatureKind, FoundHead
from figureground.stages.environment import describe
from figureground.stages.labeller import BackboneConfig, check_device, is_learned
from figureground.stages.result import last_losses
from figureground.stages.resume import check_config, check_images
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_json
from figureground.storage.lock import exclusive
from figureground.storage.shards import fingerprint
from figureground.training.checkpoint import Position
from figureground.training.found import FoundLossConfig, found_losses
from figureground.training.loop import StepReport, train
from figureground.training.order import batch_indices, generator_for

# What may differ when a run goes on: where it computes.
_FREE = ("device",)
_CHECKPOINT_EVERY = 10


class CropConfig(Config):
    """How a training example is cut from a photograph; the published constants."""

    side: int = Field(default=224, ge=16, le=2048, description="Of the crop, px; whole patches (paper: 224).")
    scale: tuple[float, float] = Field(
        default=(0.1, 3.0), description="Range of the random scale, relative to `size` (paper: 0.1 to 3)."
    )
    size: int = Field(
        default=350,
        ge=16,
        le=4096,
        description="Side in px of the square whose area a photograph has at scale 1 (DUTS-TR, the paper's, as it is: "
        "about 350).",
    )
    blur_probability: float = Field(default=0.5, ge=0, le=1, description="Of a Gaussian blur (paper: 0.5).")
    blur_sigma: tuple[float, float] = Field(
        default=(0.1, 2.0), description="Range of its standard deviation, px (paper: silent; SimCLR: 0.1 to 2)."
    )

    @field_validator("scale", "blur_sigma")
    @classmethod
    def _ascending(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not 0 < bounds[0] <= bounds[1] < math.inf:
            raise ValueError(f"Configuration keys 'crop.scale', 'crop.blur_sigma': 0 < low <= high, got {bounds}.")
        return bounds


class FoundHeadConfig(Config):
    """Everything that decides which head is learned; the published constants where the paper has one.

    They are for learned features. On a backbone without weights a head that is taught by its own masks soon takes
    everything for an object, or nothing; unless they are set, `loss` and `crop.scale` then are such that the background
    alone teaches (`loss.refined_weight` 0, `loss.background_steps` all, `loss.threshold` 0.1, scales up to 1).
    """

    images: tuple[str, ...] = Field(default=(), description="Files and folders of images (paper: DUTS-TR, 10,553).")
    limit: int | None = Field(default=None, ge=1, description="Only the first images of the sorted list.")
    backbone: BackboneConfig = BackboneConfig()
    crop: CropConfig = CropConfig()
    loss: FoundLossConfig = FoundLossConfig()
    batch_size: int = Field(default=50, ge=1, description="Images a step (paper: 50).")
    steps: int = Field(default=500, ge=1, description="Of training (paper: 500).")
    rate: float = Field(default=5e-2, gt=0, description="Learning rate of AdamW (paper: 5e-2).")
    weight_decay: float = Field(default=1e-2, ge=0, description="Of AdamW (paper: silent; PyTorch's default: 1e-2).")
    rate_factor: float = Field(default=0.95, gt=0, le=1, description="What the rate is multiplied by (paper: 0.95) ...")
    rate_steps: int = Field(default=50, ge=1, description="... every so many steps (paper: 50).")
    seed: int = Field(default=0, ge=0, description="Of the weights, the order and the crops (paper: 0).")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @model_validator(mode="before")
    @classmethod
    def _without_weights(cls, values: dict) -> dict:
        if is_learned(values.get("backbone")):
            return values
        steps = values.get("steps", cls.model_fields["steps"].default)
        loss = {"refined_weight": 0.0, "background_steps": steps, "threshold": 0.1}
        return merge({"loss": loss, "crop": {"scale": (0.1, 1.0)}}, values)

    @field_validator("images")
    @classmethod
    def _absolute(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        # A run can then be gone on with from any folder.
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in images)


@dataclass(frozen=True, slots=True)
class FoundHeadResult:
    """What was learned.

    Attributes:
        out: The run's folder.
        head: ``head.safetensors``.
        images: Images listed.
        failed: Images that could not be used where one was to be; they are named in ``failures.jsonl``.
        ignored: Files in the given folders that are no images.
        steps: In all.
        resumed: Steps that an earlier start had done.
        skipped: Steps without an update, because something was not finite.
        losses: By name, the mean of the last steps (50 at most).
        foreground: Share of the patches of one more batch that the head takes for objects; near 0 or 1 the head has
            learned nothing of use.
        seconds: Wall-clock time of this start.
    """

    out: Path
    head: Path
    images: int
    failed: int
    ignored: int
    steps: int
    resumed: int
    skipped: int
    losses: dict[str, float]
    foreground: float
    seconds: float


def configure(images: Sequence[str] = (), assignments: Sequence[str] = (), **shorthands: Any) -> FoundHeadConfig:
    """The configuration a command line asks for: ``--set``, and the shorthands over it.

    Args:
        images: Files and folders.
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
    """
    return build(FoundHeadConfig, requested(assignments, shorthands, images))


def run(config: FoundHeadConfig, out: Path, progress: Callable[[StepReport], None] = lambda _: None) -> FoundHeadResult:
    """Learn a head and write ``head.safetensors``; go on where an earlier start was stopped.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        progress: Called after every step.

    Raises:
        UsageError: If there is nothing to do or a name does not exist.
        ConfigError: If ``out`` holds a run with another configuration or of other photographs, or the crop is not of
            whole patches.
        WeightsError: If the backbone's weights cannot be had.
        RunError: If no image can be read, the losses are not finite, the folder cannot be written, or another process
            is writing it.

    Reference:
        Siméoni et al., CVPR 2023, sections 3.2 and 4.1. Deviates: see :class:`Photographs` for the crops.
    """
    start = time.perf_counter()
    images = list_images(config.images, exclude=out)
    names = images.names[: config.limit]
    check_device(config.device)
    make_folder(out)
    with exclusive(out):
        check_config(config, out / "config.json", _FREE)
        check_images(names, out / "images.json")
        backbone, kind = _load_backbone(config)
        photographs = Photographs(images, names, config, out / "failures.jsonl")
        write_json(out / "config.json", config.model_dump(mode="json"))
        write_json(out / "environment.json", describe(config.device))
        write_json(out / "images.json", {"images": len(names), "fingerprint": fingerprint(names)})
        log = out / "log.jsonl"
        jsonlines.append(log, {"event": "start", "time": time.time(), "images": len(names)})

        head = FoundHead(kind, generator_for(config.seed, "weights")).to(config.device)
        fresh = 0

        def count(report: StepReport) -> None:
            nonlocal fresh
            fresh += 1
            progress(report)

        position = _train(config, backbone, head, photographs, out, count)
        head.save(out / "head.safetensors")
        result = FoundHeadResult(
            out=out,
            head=out / "head.safetensors",
            images=len(names),
            failed=len(photographs.failures),
            ignored=images.ignored,
            steps=position.step,
            resumed=position.step - fresh,
            skipped=position.skipped,
            losses=last_losses(log),
            foreground=round(_foreground(config, backbone, head, photographs.batch(config.steps)), 4),
            seconds=round(time.perf_counter() - start, 3),
        )
        facts = {key: value for key, value in asdict(result).items() if key not in ("out", "head")}
        rate = round(fresh * config.batch_size / result.seconds, 3) if fresh else None
        described = {**asdict(kind), "image_root": str(images.root)}
        write_json(out / "result.json", {"stage": "found-head", **facts, "images_per_s": rate, **described})
        jsonlines.append(log, {"event": "end", "time": time.time(), "seconds": result.seconds})
    return result


def _train(
    config: FoundHeadConfig,
    backbone: Any,
    head: FoundHead,
    photographs: "Photographs",
    out: Path,
    progress: Callable[[StepReport], None],
) -> Position:
    def losses(crops: UInt8[Tensor, "B side side 3"], step: int) -> dict[str, Tensor]:
        pixels = crops.to(config.device)
        features = backbone(_to_float(pixels))
        return found_losses(head(features.values), features, pixels, step, config.loss)

    return train(
        head,
        losses,
        photographs.batches,
        torch.optim.AdamW(head.parameters(), lr=config.rate, weight_decay=config.weight_decay),
        lambda step: config.rate_factor ** (step // config.rate_steps),
        config.steps,
        out,
        batch_size=config.batch_size,
        checkpoint_every=_CHECKPOINT_EVERY,
        progress=progress,
    )


@torch.no_grad()
def _foreground(
    config: FoundHeadConfig, backbone: Any, head: FoundHead, crops: UInt8[Tensor, "B side side 3"]
) -> float:
    features = backbone(_to_float(crops.to(config.device)))
    return float((head(features.values) > 0).float().mean())


def _to_float(pixels: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    return pixels.permute(0, 3, 1, 2).float() / 255


class Photographs:
    """Random crops of photographs, batch by batch; a photograph that cannot be read gives its place to the next.

    Every draw is a function of the seed, the step and the place in the batch.

    Args:
        images: Where they are.
        names: Which of them.
        config: Crops, batches and seed.
        log: ``failures.jsonl``; each photograph that cannot be read is named there once.

    Attributes:
        failures: What is wrong with each photograph that was tried and could not be read, by name.

    Reference:
        Siméoni et al., CVPR 2023, section 4.1. Deviates: the scale is relative to a fixed area, not to the size of the
        file; a photograph is never made smaller than the crop, as the paper does not say what fills the rest.
    """

    def __init__(self, images: ImageList, names: Sequence[str], config: FoundHeadConfig, log: Path) -> None:
        self.images, self.names, self.config, self.log = images, names, config, log
        self.failures = {entry["path"]: entry["error"] for entry in jsonlines.read(log)}
        if not log.exists():
            jsonlines.write(log, ())

    def batches(self, step: int) -> Iterator[UInt8[Tensor, "B side side 3"]]:
        """The batches from a step on, without end."""
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> UInt8[Tensor, "B side side 3"]:
        """The batch of a step.

        Raises:
            RunError: If no photograph can be read.
        """
        config = self.config
        indices = batch_indices(len(self.names), config.batch_size, step, config.seed)
        crops = [self._crop(index, config.seed, step, place) for place, index in enumerate(indices)]
        return torch.from_numpy(np.stack(crops))

    def _crop(self, index: int, *key: int) -> np.ndarray:
        for offset in range(len(self.names)):
            name = self.names[(index + offset) % len(self.names)]
            try:
                return random_crop(self.images.path(name), self.config.crop, generator_for("crop", *key))
            except ImageError as error:
                if name not in self.failures:
                    self.failures[name] = error.message
                    jsonlines.append(self.log, {"path": name, "error": error.message})
        raise RunError(
            f"None of the {len(self.names)} images can be read; each is named in {self.log}.",
            "Look at a few of them with another program.",
        )


def random_crop(path: Path, config: CropConfig, generator: torch.Generator) -> UInt8[np.ndarray, "side side 3"]:
    """Read a photograph and cut a square from it at a random scale, blurred now and then.

    Raises:
        ImageError: If it cannot be read.
    """
    scale, down, right, blur, sigma = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    low, high = config.scale

    def scaled(size: tuple[int, int]) -> tuple[int, int]:
        height, width = size
        factor = (low + (high - low) * scale) * config.size / math.sqrt(height * width)
        factor = max(factor, config.side / min(height, width))
        return max(round(height * factor), config.side), max(round(width * factor), config.side)

    # The square is cut at the scale of the file, and only then resized: a panorama or a scan stays small that way.
    pixels, size = decode(path, enough=scaled)
    height, width = scaled(size)
    window = tuple(
        _window(length, config.side / whole, place)
        for length, whole, place in zip(pixels.shape, (height, width), (down, right), strict=False)
    )
    crop = resize_image(np.ascontiguousarray(pixels[window]), (config.side, config.side))
    if blur < config.blur_probability:
        low, high = config.blur_sigma
        crop = np.asarray(Image.fromarray(crop).filter(ImageFilter.GaussianBlur(low + (high - low) * sigma)))
    return crop


def _window(length: int, share: float, place: float) -> slice:
    """``share`` of a length, at ``place`` between its first and its last possible one."""
    extent = min(max(round(length * share), 1), length)
    first = min(int(place * (length - extent + 1)), length - extent)
    return slice(first, first + extent)


def _load_backbone(config: FoundHeadConfig) -> tuple[Any, FeatureKind]:
    choice = config.backbone
    row = backbones.find(choice.name)
    if config.crop.side % row.patch_size:
        raise ConfigError(
            f"crop.side is {config.crop.side} px, but the patches of {row.name} are {row.patch_size} px.",
            f"Example: --set crop.side={max(config.crop.side // row.patch_size, 1) * row.patch_size}",
        )
    backbone: Any = backbones.load(
        choice.name,
        weights=choice.weights,
        features=choice.features,
        precision=choice.precision,
        device=config.device,
    )
    return backbone, FeatureKind(backbone.name, choice.features, backbone.patch_size, backbone.width)
