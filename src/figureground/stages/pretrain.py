"""`figureground pretrain`: a folder of images to a backbone of its own.

``backbone.safetensors`` holds the teacher's weights and says how to build it (:mod:`figureground.backbones.own`).
Beside that its metadata have ``recipe``, ``method`` (``dino`` or ``ibot``), ``steps``, ``batch_size``, ``images``,
``fingerprint`` (of their names) and ``licence``.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from figureground.backbones import own
from figureground.config import Config, build, merge, requested
from figureground.data.crops import CropsConfig, multi_crop
from figureground.data.pseudo_labels import Failures
from figureground.data.squares import Square, load_squares, none_readable, read_square
from figureground.data.tars import ImageFile, list_image_files
from figureground.errors import ImageError
from figureground.stages.environment import describe
from figureground.stages.labeller import check_device
from figureground.stages.pretrain_recipes import RECIPES, find_recipe
from figureground.stages.probes import CorLocProbe, KnnProbe, ProbeConfig
from figureground.stages.result import last_losses
from figureground.stages.resume import check_config, check_images
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_bytes, write_json
from figureground.storage.lock import exclusive
from figureground.storage.shards import fingerprint
from figureground.training.checkpoint import Position
from figureground.training.dino import Dino, DinoConfig, parameter_groups, schedules
from figureground.training.distributed import joined, on_first, share, world
from figureground.training.loading import batches_of
from figureground.training.loop import StepReport, train
from figureground.training.order import generator_for

_GIB = 2**30
# What may differ when a run goes on: where and how it computes, what is measured beside it.
_FREE = ("device", "memory_gib", "workers", "checkpoint_every", "watch_every", "probe", "tensorboard")

Batch = tuple[UInt8[Tensor, "B S S 3"], Float[Tensor, "B"]]


class PretrainConfig(Config):
    """Everything that decides which backbone is learned; the defaults are published for ViT-S/16."""

    images: tuple[str, ...] = Field(default=(), description="Files, folders and tars of images (paper: ImageNet-1k).")
    limit: int | None = Field(default=None, ge=1, description="Only the first images of the list.")
    recipe: str = Field(default="dino_s16", description=f"What the rest begins as: {', '.join(RECIPES)}.")
    dino: DinoConfig = DinoConfig()
    crops: CropsConfig = CropsConfig()
    probe: ProbeConfig = ProbeConfig()
    batch_size: int = Field(default=1024, ge=2, description="Images a step, of all processes together (paper: 1024).")
    epochs: float = Field(default=100, gt=0, description="Times that every image is seen (paper: 100 to 800).")
    steps: int | None = Field(default=None, ge=1, description="Of training; none: as many as the epochs take.")
    seed: int = Field(default=0, ge=0, description="Of the weights, the order and all draws.")
    store_side: int = Field(
        default=256,
        ge=16,
        le=1024,
        description="Side of the squares that images are kept as and cropped from, px.",
    )
    memory_gib: float = Field(
        default=16, ge=0, description="Squares that take no more, GiB, stay on the device; others are read every time."
    )
    workers: int = Field(default=0, ge=0, le=256, description="Processes that read images, beside each that trains.")
    checkpoint_every: int = Field(default=250, ge=1, description="Steps: what a kill can cost at most.")
    watch_every: int = Field(default=500, ge=1, description="Steps between two measurements, each with its export.")
    half: bool = Field(default=False, description="Whether the weights are written as fp16, in half the space.")
    licence: str = Field(
        default="not stated; the terms of the images it was learned from may apply",
        description="Of the weights; written into their file.",
    )
    tensorboard: bool = Field(default=False, description="Write what is measured for TensorBoard too.")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @field_validator("images")
    @classmethod
    def _absolute(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        # A run can then be gone on with from any folder.
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in images)

    @model_validator(mode="after")
    def _whole_patches(self) -> "PretrainConfig":
        patch = self.dino.vit.patch_size
        sides = {"crops.global_size": self.crops.global_size, "dino.vit.image_size": self.dino.vit.image_size}
        if self.crops.local_count:
            sides["crops.local_size"] = self.crops.local_size
        for key, side in sides.items():
            if side % patch:
                whole = max(side // patch, 1) * patch
                raise ValueError(f"{key} is {side} px, but patches are {patch} px. Example: --set {key}={whole}")
        return self


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What was learned.

    Attributes:
        out: The run's folder.
        backbone: ``backbone.safetensors``.
        images: Images listed.
        failed: Images that could not be used where one was to be; they are named in ``failures.jsonl``.
        ignored: Files and members of tars that are no images.
        steps: In all.
        resumed: Steps that an earlier start had done.
        skipped: Steps without an update, because something was not finite.
        losses: By name, the mean of the last steps (50 at most).
        measured: By name, what was measured last: how far from collapse, and the probes.
        images_per_s: Of this start, or ``None`` where nothing was left to do.
        seconds: Wall-clock time of this start.
    """

    out: Path
    backbone: Path
    images: int
    failed: int
    ignored: int
    steps: int
    resumed: int
    skipped: int
    losses: dict[str, float]
    measured: dict[str, float]
    images_per_s: float | None
    seconds: float


def configure(images: Sequence[str] = (), assignments: Sequence[str] = (), **shorthands: Any) -> PretrainConfig:
    """The configuration a command line asks for: the recipe, ``--set`` over it, and the shorthands over both.

    Args:
        images: Files, folders and tars.
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
        UsageError: If there is no such recipe.
    """
    asked = requested(assignments, shorthands, images)
    name = asked.setdefault("recipe", PretrainConfig.model_fields["recipe"].default)
    return build(PretrainConfig, merge(find_recipe(name).settings(), asked))


def run(config: PretrainConfig, out: Path, progress: Callable[[StepReport], None] = lambda _: None) -> PretrainResult:
    """Learn a backbone and write ``backbone.safetensors``; go on where an earlier start was stopped.

    Several processes that ``torchrun`` has started learn one backbone together; rank 0 writes and reports. Every draw
    is a function of the seed, the step and the rank, so that as many processes learn the same.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        progress: Called after every step.

    Raises:
        UsageError: If there is nothing to do, a name does not exist, or a tar is damaged.
        ConfigError: If ``out`` holds a run with another configuration or of other images, or sizes do not fit together.
        RunError: If no image can be read, training has collapsed or is not finite, the folder cannot be written, or
            another process is writing it.

    Reference:
        Caron et al., ICCV 2021, section 3; see :mod:`figureground.training.dino` and :mod:`figureground.data.crops`.
    """
    start = time.perf_counter()
    listed = list_image_files(config.images, exclude=out)
    files = listed.files[: config.limit]
    check_device(config.device)
    with joined(config.device) as here, contextlib.ExitStack() as stack:
        # First what may be refused: it leaves no folder behind.
        learning = _Learning(config, files, out)
        if here.first:
            make_folder(out)
            stack.enter_context(exclusive(out))
        on_first(_open, config, files, out)
        log = out / "log.jsonl"
        failures = Failures(out / "failures.jsonl")
        photographs = Photographs(files, config, failures)
        fresh, began = 0, time.perf_counter()

        def count(report: StepReport) -> None:
            nonlocal fresh
            fresh += 1
            progress(report)

        position = learning.train(photographs, count)
        rate = round(fresh * config.batch_size / (time.perf_counter() - began), 3) if fresh else None
        result = PretrainResult(
            out=out,
            backbone=out / own.FILE,
            images=len(files),
            failed=len(failures.entries()),
            ignored=listed.ignored,
            steps=position.step,
            resumed=position.step - fresh,
            skipped=position.skipped,
            losses=last_losses(log),
            measured=next((entry["watch"] for entry in reversed(jsonlines.read(log)) if "watch" in entry), {}),
            images_per_s=rate,
            seconds=round(time.perf_counter() - start, 3),
        )
        on_first(_close, result, learning, listed.root)
    return result


def _open(config: PretrainConfig, files: Sequence[ImageFile], out: Path) -> None:
    """Compare with what the folder holds, and write what this start is."""
    names = [file.name for file in files]
    check_config(config, out / "config.json", _FREE)
    check_images(names, out / "images.json")
    write_json(out / "config.json", config.model_dump(mode="json"))
    write_json(out / "environment.json", {**describe(world().device), "processes": world().size})
    write_json(out / "images.json", {"images": len(names), "fingerprint": fingerprint(names)})
    Failures(out / "failures.jsonl")
    jsonlines.append(out / "log.jsonl", {"event": "start", "time": time.time(), "images": len(names)})


def _close(result: PretrainResult, learning: "_Learning", root: Path) -> None:
    """Write the backbone and what came of the run."""
    learning.export(result.steps)
    facts = {key: value for key, value in asdict(result).items() if key not in ("out", "backbone")}
    write_json(result.out / "result.json", {"stage": "pretrain", **facts, "image_root": str(root)})
    jsonlines.append(result.out / "log.jsonl", {"event": "end", "time": time.time(), "seconds": result.seconds})


class _Learning:
    """The model of a run: how it is trained, measured and written."""

    def __init__(self, config: PretrainConfig, files: Sequence[ImageFile], out: Path) -> None:
        self.config, self.files, self.out = config, files, out
        share(range(config.batch_size))
        epoch_steps = len(files) / config.batch_size
        self.steps = config.steps or max(round(config.epochs * epoch_steps), 1)
        self.rate = config.dino.rate * config.batch_size / 256
        self.course = schedules(config.dino, self.steps, epoch_steps, self.rate)
        self.model = Dino(config.dino, self.course, generator_for(config.seed, "weights"))
        self.model.use(torch.device(world().device))
        self.probes: dict[str, Callable[[Any], float]] = {}
        if world().first:
            self.probes = _probes(config, files)

    def train(self, photographs: "Photographs", progress: Callable[[StepReport], None]) -> Position:
        config = self.config
        # What the loop sets to the schedule's value: the groups that have any.
        decay = max(config.dino.weight_decay, config.dino.weight_decay_end)
        return train(
            self.model,
            self.losses,
            photographs.batches,
            torch.optim.AdamW(parameter_groups(self.model.student, decay), lr=self.rate),
            self.course.rate,
            self.steps,
            self.out,
            batch_size=config.batch_size,
            checkpoint_every=config.checkpoint_every,
            max_norm=config.dino.max_norm,
            clip="each",
            decay=self.course.decay,
            after_update=self.model.after_update,
            watch=self.watch,
            watch_every=config.watch_every,
            tensorboard=config.tensorboard,
            progress=progress,
        )

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Those of a batch, its views drawn from the seed, the step and the rank."""
        draws = generator_for(self.config.seed, "views", step, world().rank)
        return self.model.losses(multi_crop(*batch, self.config.crops, draws), step, draws)

    def watch(self, step: int) -> dict[str, float]:
        """Measure the teacher, and write it as it is."""
        found = self.model.measure(step)
        self.export(step + 1)
        return found | {name: round(probe(self.model.backbone), 6) for name, probe in self.probes.items()}

    def export(self, steps: int) -> None:
        """Write ``backbone.safetensors`` as it is after so many steps."""
        config, names = self.config, [file.name for file in self.files]
        facts = {
            "mean": config.dino.mean,
            "std": config.dino.std,
            "recipe": config.recipe,
            "method": "ibot" if config.dino.patches.weight else "dino",
            "steps": steps,
            "batch_size": config.batch_size,
            "images": len(names),
            "fingerprint": fingerprint(names),
            "licence": config.licence,
        }
        dtype = torch.float16 if config.half else torch.float32
        state = self.model.backbone.state_dict()
        weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
        metadata = own.describe(config.dino.vit.shape, facts)
        write_bytes(self.out / own.FILE, safetensors.torch.save(weights, metadata))
        # This process may have read an earlier one of that name.
        own.read.cache_clear()


def _probes(config: PretrainConfig, files: Sequence[ImageFile]) -> dict[str, Callable[[Any], float]]:
    probes: dict[str, Callable[[Any], float]] = {}
    probe, device = config.probe, world().device
    if probe.labels != "none":
        probes["knn"] = KnnProbe(files, probe, config.dino, config.crops.global_size, config.seed, device)
    if probe.truth is not None:
        probes["corloc"] = CorLocProbe(probe, config.dino, device)
    return probes


class Photographs:
    """The batches of a run: squares in the device's memory where they fit, else read by workers; the same either way.

    A photograph that cannot be read gives its place to the next.

    Args:
        files: All of them.
        config: Sizes, batches, seed.
        failures: Names each photograph that cannot be read.

    Raises:
        RunError: If no photograph can be read.
    """

    def __init__(self, files: Sequence[ImageFile], config: PretrainConfig, failures: Failures) -> None:
        self.device = world().device
        batched = partial(batches_of, count=len(files), batch_size=config.batch_size, seed=config.seed)
        if len(files) * config.store_side**2 * 3 > config.memory_gib * _GIB:
            example = _Example(files, config.store_side, failures)
            self._read = batched(example, workers=config.workers, collate=_stack)
            self.batches = self._read_batches
            return
        # Every process holds all of them.
        self._held = load_squares(files, config.store_side, device=self.device, workers=config.workers, failed=failures)
        self._places = batched(_itself, collate=torch.tensor)
        self.batches = self._held_batches

    def _held_batches(self, step: int) -> Iterator[Batch]:
        for places in self._places(step):
            rows = self._held.rows[places]
            yield self._held.pixels[rows.to(self.device)], self._held.aspects[rows]

    def _read_batches(self, step: int) -> Iterator[Batch]:
        for pixels, aspects in self._read(step):
            yield pixels.to(self.device, non_blocking=True), aspects


class _Example:
    """Reads a photograph, or the next that can be; picklable, for the workers."""

    def __init__(self, files: Sequence[ImageFile], side: int, failures: Failures) -> None:
        self.files, self.side, self.failures = files, side, failures

    def __call__(self, index: int, draw: int) -> Square:
        for offset in range(len(self.files)):
            file = self.files[(index + offset) % len(self.files)]
            try:
                return read_square(file, self.side)
            except ImageError as error:
                self.failures(file.name, error.message)
        raise none_readable(self.files)


def _stack(squares: list[Square]) -> Batch:
    pixels, aspects = zip(*squares, strict=True)
    return torch.stack([torch.from_numpy(square.copy()) for square in pixels]), torch.tensor(aspects)


def _itself(index: int, draw: int) -> int:
    return index
