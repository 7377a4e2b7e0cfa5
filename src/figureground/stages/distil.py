"""`figureground distil`: the masks of a run to a backbone that sees figure and ground, and the head that says so."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from figureground.backbones import own
from figureground.config import Config, build, requested
from figureground.data.crops import ColourConfig, random_windows, recolour, resample
from figureground.data.pseudo_labels import Failures, PseudoLabelConfig, PseudoLabels
from figureground.data.resize import resize_image
from figureground.errors import ConfigError, UsageError
from figureground.proposals.found_head import FeatureKind, FoundHead, load_head
from figureground.stages.detecting import digest_of
from figureground.stages.detector_training import Report
from figureground.stages.environment import describe
from figureground.stages.labeller import check_device
from figureground.stages.labels import find_labels
from figureground.stages.result import last_losses
from figureground.stages.resume import check_config, check_images
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_bytes, write_json
from figureground.storage.lock import exclusive
from figureground.storage.shards import fingerprint
from figureground.training.checkpoint import Position
from figureground.training.dino import parameter_groups
from figureground.training.distil import Distil, DistilConfig
from figureground.training.distributed import joined, on_first, share, world
from figureground.training.loading import batches_of
from figureground.training.loop import StepReport, train
from figureground.training.order import generator_for

# What may differ when a run goes on: where it computes, how often it writes.
_FREE = ("device", "checkpoint_every", "tensorboard")

Batch = tuple[UInt8[Tensor, "B S S 4"], Float[Tensor, "B"]]


class DistilCropsConfig(ColourConfig):
    """How an example is cut from a photograph and its mask; milder than DINO's, for a crop may lose the figure."""

    side: int = Field(default=96, ge=16, le=1024, description="Of a crop, px; whole patches.")
    scale: tuple[float, float] = Field(default=(0.5, 1.0), description="Share of the area that a crop covers.")
    aspect: tuple[float, float] = Field(
        default=(3 / 4, 4 / 3), description="Width over height of a crop before it is made square."
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="Probability that a crop is mirrored.")
    grey: float = Field(default=0.1, ge=0, le=1, description="Probability that colours are dropped.")

    @field_validator("scale", "aspect")
    @classmethod
    def _ascending(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"Configuration keys 'crops.scale', 'crops.aspect': 0 < low <= high, got {bounds}.")
        return bounds


class DistilRunConfig(Config):
    """Everything that decides which backbone is learned."""

    labels: str = Field(default="", description="Run of `label` or `predict`, or a COCO file with masks.")
    digest: str | None = Field(default=None, description="SHA-256 of its masks; filled in when they are read.")
    images: str | None = Field(
        default=None, description="Folder that file names are relative to; none: the one that the run remembers."
    )
    init: str | None = Field(
        default=None,
        description="Run of an earlier `distil` to begin with; none: chance.",
    )
    masks: PseudoLabelConfig = PseudoLabelConfig(min_score=0.5)
    distil: DistilConfig = DistilConfig()
    crops: DistilCropsConfig = DistilCropsConfig()
    batch_size: int = Field(default=48, ge=2, description="Images a step, of all processes together.")
    steps: int = Field(default=4000, ge=1, description="Of training.")
    store_side: int = Field(default=144, ge=16, le=1024, description="Side of the squares that images are kept as, px.")
    seed: int = Field(default=0, ge=0, description="Of the weights, the order and all draws.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps: what a kill can cost at most.")
    licence: str = Field(
        default="not stated; the terms of the images it was learned from may apply",
        description="Of the weights; written into their file.",
    )
    tensorboard: bool = Field(default=False, description="Write what is measured for TensorBoard too.")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @field_validator("labels", "images", "init")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        # A run can then be gone on with from any folder.
        return os.path.abspath(os.path.expanduser(path)) if path else path

    @model_validator(mode="after")
    def _whole_patches(self) -> "DistilRunConfig":
        for key, side in (("crops.side", self.crops.side), ("distil.image_size", self.distil.image_size)):
            patch = self.distil.patch_size
            if side % patch:
                whole = max(side // patch, 1) * patch
                raise ValueError(f"{key} is {side} px, but patches are {patch} px. Example: --set {key}={whole}")
        return self


@dataclass(frozen=True, slots=True)
class DistilResult:
    """What was learned.

    Attributes:
        out: The run's folder.
        backbone: ``backbone.safetensors``.
        head: ``head.safetensors``, for the method found on this backbone's tokens.
        images: Images with masks.
        failed: Images and masks that could not be used; they are named in ``failures.jsonl``.
        steps: In all.
        resumed: Steps that an earlier start had done.
        skipped: Steps without an update, because something was not finite.
        losses: By name, the mean of the last steps (50 at most).
        foreground: Mean probability of figure in the last step; near 0 or 1 nothing of use was learned.
        images_per_s: Of this start, or ``None`` where nothing was left to do.
        seconds: Wall-clock time of this start.
    """

    out: Path
    backbone: Path
    head: Path
    images: int
    failed: int
    steps: int
    resumed: int
    skipped: int
    losses: dict[str, float]
    foreground: float | None
    images_per_s: float | None
    seconds: float


def configure(labels: str | None = None, assignments: Sequence[str] = (), **shorthands: Any) -> DistilRunConfig:
    """The configuration a command line asks for: ``--set``, and the shorthands over it.

    Args:
        labels: Run or COCO file.
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
    """
    return build(DistilRunConfig, requested(assignments, {"labels": labels, **shorthands}, ()))


def run(config: DistilRunConfig, out: Path, progress: Callable[[StepReport], None] = lambda _: None) -> DistilResult:
    """Learn a backbone and its head; go on where an earlier start was stopped.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        progress: Called after every step.

    Raises:
        UsageError: If there are no masks to learn from.
        ConfigError: If ``out`` holds a run with another configuration or of other images, or sizes do not fit together.
        WeightsError: If ``init`` cannot be used.
        RunError: If no image can be read, the loss is not finite, or the folder cannot be written.
    """
    start = time.perf_counter()
    if not config.labels:
        raise UsageError("No masks are given.", "Example: figureground distil runs/photos --out runs/backbone")
    file, folder = find_labels(Path(config.labels), [config.images] if config.images else [])
    check_device(config.device)
    config = config.replace(digest=digest_of(file))
    with joined(config.device) as here, contextlib.ExitStack() as stack:
        # First what may be refused: it leaves no folder behind.
        share(range(config.batch_size))
        model = Distil(config.distil, generator_for(config.seed, "weights")).use(torch.device(here.device))
        if config.init is not None:
            _begin_with(model, Path(config.init))
        report = Report()
        labels = PseudoLabels(file, folder, config.masks, report)
        names = [labels.name(index) for index in range(len(labels))]
        if here.first:
            make_folder(out)
            stack.enter_context(exclusive(out))
        on_first(_open, config, names, out)
        report.write_to(out / "failures.jsonl")
        squares = _read_squares(labels, config.store_side)
        fresh, began = 0, time.perf_counter()

        def count(report: StepReport) -> None:
            nonlocal fresh
            fresh += 1
            progress(report)

        position = _train(config, model, squares, out, count)
        rate = round(fresh * config.batch_size / (time.perf_counter() - began), 3) if fresh else None
        log = out / "log.jsonl"
        on_first(_export, config, model, names, position.step, out)
        watched = [entry["watch"]["foreground"] for entry in jsonlines.read(log) if "watch" in entry]
        result = DistilResult(
            out=out,
            backbone=out / own.FILE,
            head=out / "head.safetensors",
            images=len(names),
            failed=len(Failures(out / "failures.jsonl").entries()),
            steps=position.step,
            resumed=position.step - fresh,
            skipped=position.skipped,
            losses=last_losses(log),
            foreground=watched[-1] if watched else None,
            images_per_s=rate,
            seconds=round(time.perf_counter() - start, 3),
        )
        on_first(_close, result)
    return result


def _begin_with(model: Distil, path: Path) -> None:
    """Take the weights of an earlier run, its head's with them."""
    folder = path if path.is_dir() else path.parent
    known = own.read(folder / own.FILE)
    if known.shape != model.config.shape:
        raise ConfigError(
            f"{known.path} is another network: {known.shape}, not {model.config.shape}.",
            "Set distil.patch_size, width, depth, heads, stem and image_size as they are there.",
        )
    weights = {f"backbone.{key}": value for key, value in safetensors.torch.load_file(known.path).items()}
    head = load_head(folder / "head.safetensors")
    weights |= {"head.weight": head.weight[None], "head.bias": head.bias.reshape(1)}
    for network in (model.pupil, model.average.module):
        network.load_state_dict({key: value.to(network.state_dict()[key].dtype) for key, value in weights.items()})


def _open(config: DistilRunConfig, names: Sequence[str], out: Path) -> None:
    """Compare with what the folder holds, and write what this start is."""
    check_config(config, out / "config.json", _FREE)
    check_images(names, out / "images.json")
    write_json(out / "config.json", config.model_dump(mode="json"))
    write_json(out / "environment.json", {**describe(world().device), "processes": world().size})
    write_json(out / "images.json", {"images": len(names), "fingerprint": fingerprint(names)})
    # Made once, before several processes add to it.
    Failures(out / "failures.jsonl")
    jsonlines.append(out / "log.jsonl", {"event": "start", "time": time.time(), "images": len(names)})


def _close(result: DistilResult) -> None:
    facts = {key: value for key, value in asdict(result).items() if key not in ("out", "backbone", "head")}
    write_json(result.out / "result.json", {"stage": "distil", **facts})
    jsonlines.append(result.out / "log.jsonl", {"event": "end", "time": time.time(), "seconds": result.seconds})


def _read_squares(labels: PseudoLabels, side: int) -> Batch:
    """All images, the union of each one's masks as a fourth channel, and their widths over heights."""
    squares = torch.empty(len(labels), side, side, 4, dtype=torch.uint8)
    aspects = torch.empty(len(labels))
    for index in range(len(labels)):
        pixels, targets = labels.example(index)
        figure = targets["masks"].any(0).numpy().astype(np.uint8) * 255
        squares[index, ..., :3] = torch.from_numpy(resize_image(pixels, (side, side)).copy())
        squares[index, ..., 3] = torch.from_numpy(resize_image(np.stack([figure] * 3, -1), (side, side))[..., 0].copy())
        aspects[index] = pixels.shape[1] / pixels.shape[0]
    return squares, aspects


def _train(
    config: DistilRunConfig, model: Distil, squares: Batch, out: Path, progress: Callable[[StepReport], None]
) -> Position:
    pixels, aspects = squares
    places = batches_of(
        lambda index, draw: index, len(pixels), config.batch_size, config.seed, collate=partial(torch.tensor)
    )

    def batches(step: int) -> Iterator[Batch]:
        for rows in places(step):
            yield pixels[rows], aspects[rows]

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        generator = generator_for(config.seed, "crops", step, world().rank)
        return model.losses(*_crop(batch, config.crops, generator, torch.device(world().device)))

    return train(
        model,
        losses,
        batches,
        torch.optim.AdamW(
            parameter_groups(model.pupil, config.distil.weight_decay), lr=config.distil.rate, betas=(0.9, 0.95)
        ),
        config.distil.schedule(config.steps),
        config.steps,
        out,
        batch_size=config.batch_size,
        checkpoint_every=config.checkpoint_every,
        max_norm=config.distil.max_norm,
        after_update=model.after_update,
        watch=model.measure,
        tensorboard=config.tensorboard,
        progress=progress,
    )


def _crop(
    batch: Batch, config: DistilCropsConfig, generator: torch.Generator, device: torch.device
) -> tuple[Float[Tensor, "B 3 s s"], Float[Tensor, "B 1 s s"]]:
    """One crop of each photograph, recoloured, and the same of its figure."""
    squares, aspects = batch
    windows = random_windows(aspects, config.scale, config.aspect, generator)
    mirrored = torch.rand(len(squares), generator=generator) < config.flip
    crops = resample(squares.to(device).float() / 255, windows, mirrored, config.side)
    return recolour(crops[:, :3], config, generator), crops[:, 3:]


def _export(config: DistilRunConfig, model: Distil, names: Sequence[str], steps: int, out: Path) -> None:
    """Write the average: the backbone in half precision, and its head, which knows the backbone by its digest."""
    pupil = model.average.module
    facts = {
        "mean": config.distil.mean,
        "std": config.distil.std,
        "method": "distil",
        "labels": Path(config.labels).name,
        "steps": steps,
        "batch_size": config.batch_size,
        "images": len(names),
        "fingerprint": fingerprint(names),
        "licence": config.licence,
    }
    weights = {
        key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for key, value in pupil.backbone.state_dict().items()
    }
    path = out / own.FILE
    write_bytes(path, safetensors.torch.save(weights, own.describe(config.distil.shape, facts)))
    own.read.cache_clear()
    shape = config.distil.shape
    head = FoundHead(FeatureKind(f"own-{own.read(path).digest}", "tokens", shape.patch_size, shape.width))
    head.load_state_dict({"weight": pupil.head.weight[0].detach().cpu(), "bias": pupil.head.bias[0].detach().cpu()})
    head.save(out / "head.safetensors")
