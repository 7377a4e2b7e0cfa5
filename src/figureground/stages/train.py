"""`figureground train`: images and their pseudo-labels to a detector."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor

from figureground import detectors
from figureground.config import Config, build, merge, requested
from figureground.data.augment import AugmentConfig
from figureground.data.coco import annotate
from figureground.data.copy_paste import CopyPasteConfig
from figureground.data.images import decode
from figureground.data.pseudo_labels import Failures, PseudoLabelConfig, PseudoLabels
from figureground.detectors import DetectorConfig
from figureground.detectors.cascade_mask_rcnn import CascadeMaskRCNNConfig
from figureground.detectors.exemplar_contrast import ExemplarContrastConfig
from figureground.detectors.solov2 import SOLOv2
from figureground.errors import ConfigError, ImageError
from figureground.stages.detecting import DETECTOR_FILE, Finder, TruthProbe, TruthProbeConfig, digest_of
from figureground.stages.detector_training import (
    Batch,
    Examples,
    Learner,
    OptimiserConfig,
    Report,
    check_labels,
    fit_to_embedder,
    fit_to_labels,
    learns_embeddings,
    load_weights,
    make_optimiser,
    rate_schedule,
    to_device,
    weights_file,
)
from figureground.stages.environment import describe
from figureground.stages.exemplar_pool import ExemplarPool, check_backbone, load_pool
from figureground.stages.instance_embeddings import EmbedderConfig, embed_labels
from figureground.stages.labeller import check_device
from figureground.stages.labels import find_labels
from figureground.stages.result import last_losses
from figureground.stages.resume import check_config
from figureground.stages.train_recipes import RECIPES, find_recipe
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_json
from figureground.storage.lock import exclusive
from figureground.storage.shards import fingerprint
from figureground.structures import Instances
from figureground.training.checkpoint import Position
from figureground.training.distributed import joined, on_first, world
from figureground.training.loading import batches_of
from figureground.training.loop import StepReport, train
from figureground.training.order import batch_indices, generator_for
from figureground.viewer import Picture, write_training

# What may differ when a run goes on: where and how it computes, what is measured beside it, and where its input lies;
# digests tell whether that is the same.
_FREE = (
    "annotations",
    "images",
    "exemplars",
    "device",
    "workers",
    "checkpoint_every",
    "watch_every",
    "probe",
    "tensorboard",
)
# Pictures of a kind on the page.
_SHOWN = 8


class TrainConfig(Config):
    """Everything that decides which detector is learned; the defaults are CutLER's first round as released."""

    annotations: str = Field(default="", description="COCO file of pseudo-labels.")
    digest: str | None = Field(default=None, description="SHA-256 of that file; filled in when it is read.")
    images: str = Field(default="", description="Folder that its file names are relative to.")
    recipe: str = Field(default="cutler_cascade", description=f"What the rest begins as: {', '.join(RECIPES)}.")
    init: str | None = Field(
        default=None,
        description="Weights to begin with: a detector, or a backbone; none: random ones (CutLER: DINO's ResNet-50, "
        "later the round before).",
    )
    init_digest: str | None = Field(default=None, description="SHA-256 of their file; filled in when it is read.")
    detector: DetectorConfig = CascadeMaskRCNNConfig()
    labels: PseudoLabelConfig = PseudoLabelConfig()
    augment: AugmentConfig = AugmentConfig()
    copy_paste: CopyPasteConfig | None = Field(
        default=CopyPasteConfig(), description="How objects are pasted; none: they are not (CutLER: always)."
    )
    optimiser: OptimiserConfig = OptimiserConfig()
    embedder: EmbedderConfig = EmbedderConfig()
    exemplars: str | None = Field(
        default=None,
        description="Pool of `figureground exemplars` that embeddings are learned beside, too; none: they are not "
        "(Exemplar-FreeSOLO: in self-training).",
    )
    exemplars_digest: str | None = Field(default=None, description="Of its pivots; filled in when it is read.")
    exemplar: ExemplarContrastConfig = ExemplarContrastConfig()
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="Of most of the arithmetic (CutLER: fp16; its Mask R-CNN: fp32)."
    )
    ema: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Momentum of a moving average of the weights, which is then what is kept; none: the last weights "
        "are (CutLER: none).",
    )
    batch_size: int = Field(default=16, ge=1, description="Images a step, of all processes together (CutLER: 16).")
    steps: int = Field(default=160_000, ge=1, description="Of training (CutLER: 160,000; self-training 80,000).")
    seed: int = Field(default=0, ge=0, description="Of the first weights, the order and all draws.")
    workers: int = Field(default=0, ge=0, le=256, description="Processes that make batches, beside each that trains.")
    checkpoint_every: int = Field(default=500, ge=1, description="Steps: what a kill can cost at most.")
    watch_every: int = Field(default=5000, ge=1, description="Steps between two measurements.")
    probe: TruthProbeConfig = TruthProbeConfig()
    tensorboard: bool = Field(default=False, description="Write what is measured for TensorBoard too.")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @field_validator("annotations", "images")
    @classmethod
    def _absolute(cls, path: str) -> str:
        # A run can then be gone on with from any folder.
        return os.path.abspath(os.path.expanduser(path)) if path else path

    @field_validator("init", "exemplars")
    @classmethod
    def _absolute_file(cls, source: str | None) -> str | None:
        return os.path.abspath(source) if source and os.path.exists(source) else source


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What was learned.

    Attributes:
        out: The run's folder.
        detector: ``detector.safetensors``: the average where there is one, else the last weights.
        report: The page to look at.
        images: Images with pseudo-labels to learn from.
        failed: Images that could not be used where one was to be; they are named in ``failures.jsonl``.
        rejected: Annotations that could not be used; named there, too.
        steps: In all.
        resumed: Steps that an earlier start had done.
        skipped: Steps without an update, because something was not finite.
        losses: By name, the mean of the last steps (50 at most).
        measured: By name, what was measured last; empty without a truth.
        images_per_s: Of this start, or ``None`` where nothing was left to do.
        seconds: Wall-clock time of this start.
    """

    out: Path
    detector: Path
    report: Path
    images: int
    failed: int
    rejected: int
    steps: int
    resumed: int
    skipped: int
    losses: dict[str, float]
    measured: dict[str, float]
    images_per_s: float | None
    seconds: float


def configure(
    labels: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]] = (),
    assignments: Sequence[str] = (),
    *,
    recipe: str | None = None,
    detector: str | None = None,
    **shorthands: Any,
) -> TrainConfig:
    """The configuration a command line asks for: the recipe, ``--set`` over it, and the shorthands over both.

    Args:
        labels: A COCO file, or the folder of a `label` or `predict` run.
        images: What that run was given: files and folders, the deepest folder of which that holds them all is that of
            the images; none: as the run says.
        assignments: ``KEY=VALUE``; ``detector.preset`` is one of the detector's.
        recipe: Its name; none: `cutler_cascade` on a GPU, else `small`.
        detector: Instead of the recipe's.
        shorthands: Values of other top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
        UsageError: If there is no such file, recipe or detector, or it is not said where the images are.
    """
    asked = requested(assignments, {**shorthands, "recipe": recipe})
    on_gpu = str(asked.get("device", "cpu")).startswith("cuda")
    name = asked.setdefault("recipe", "cutler_cascade" if on_gpu else "small")
    if detector is not None:
        changes = asked.get("detector", {})
        asked["detector"] = {**({} if isinstance(changes, str) else changes), "detector": detector}
    annotations, folder = find_labels(Path(labels), images)
    return settings_of(name, {**asked, "annotations": str(annotations), "images": str(folder)})


def settings_of(recipe: str, changes: dict[str, Any]) -> TrainConfig:
    """The settings of a recipe, and what differs from it.

    Args:
        recipe: Its name.
        changes: What differs; ``detector`` is a name, or a tree, of which ``detector`` says which and ``preset`` of
            what kind.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
        UsageError: If there is no such recipe or detector.
    """
    begun = find_recipe(recipe)
    asked = dict(changes)
    own = asked.pop("detector", {})
    own = {"detector": own} if isinstance(own, str) else dict(own)
    chosen = own.pop("detector", begun.detector)
    tree = begun.settings(chosen)
    try:
        detector = detectors.configure(chosen, **merge(tree.pop("detector", {}), own))
    except ConfigError as error:
        raise ConfigError(f"detector: {error.message}", error.remedy) from None
    return build(TrainConfig, {**merge(tree, asked), "recipe": recipe, "detector": detector.model_dump()})


def complete(config: TrainConfig, labels: PseudoLabels | None = None) -> TrainConfig:
    """Settings with what follows from others: the width of embeddings and, of pseudo-labels, the categories.

    Raises:
        UsageError: If something else is set, or there is no such backbone.
    """
    detector = fit_to_embedder(config.detector, config.embedder)
    if labels is not None:
        detector = fit_to_labels(detector, labels)
    return config.replace(detector=detector.model_dump())


def _with_exemplars(config: TrainConfig) -> tuple[TrainConfig, ExemplarPool | None]:
    """The pool that embeddings are learned beside, if there is one, and settings that know it."""
    if config.exemplars is None:
        return config, None
    if not learns_embeddings(config.detector):
        raise ConfigError(
            f"exemplars is set, but {config.detector.detector} learns no embeddings to compare with them.",
            "Add --detector solov2 --set detector.embedding_weight=4, or begin with --recipe freesolo_paper.",
        )
    pool = load_pool(Path(config.exemplars), world().device)
    check_backbone(pool, config.embedder.identity())
    return config.replace(exemplars_digest=pool.digest), pool


def run(config: TrainConfig, out: Path, progress: Callable[[StepReport], None] = lambda _: None) -> TrainResult:
    """Learn a detector and write ``detector.safetensors``; go on where an earlier start was stopped.

    Several processes that ``torchrun`` has started learn one detector together; each takes its part of every batch, and
    objects are pasted within it. Rank 0 writes and reports. Every draw is a function of the seed, the step and the
    rank, so that as many processes learn the same.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        progress: Called after every step.

    Raises:
        UsageError: If the pseudo-labels cannot be read, hold nothing to learn from, or are about other images or
            categories; or there is no pool of exemplars.
        ConfigError: If ``out`` holds a run with another configuration or other pseudo-labels, the batch cannot be
            shared, or the pool is of another backbone.
        WeightsError: If the weights to begin with cannot be had or do not fit.
        RunError: If no image can be used, the losses are not finite, the folder cannot be written, or another process
            is writing it.

    Reference:
        Wang et al., CutLER, CVPR 2023, sections 3.3 and 3.4; its parts say where they deviate.
    """
    start = time.perf_counter()
    check_device(config.device)
    begun = weights_file(config.init) if config.init is not None else None
    config = config.replace(
        digest=digest_of(Path(config.annotations)), init_digest=None if begun is None else digest_of(begun)
    )
    with joined(config.device) as here, contextlib.ExitStack() as stack:
        # First what may be refused: it leaves no folder behind.
        run_ = _Run(config)
        config = run_.config
        if here.first:
            make_folder(out)
            stack.enter_context(exclusive(out))
        on_first(_open, config, run_, out)
        run_.report.write_to(out / "failures.jsonl")
        run_.embed(out / "embeddings")
        fresh, began = 0, time.perf_counter()

        def count(report: StepReport) -> None:
            nonlocal fresh
            fresh += 1
            progress(report)

        position = run_.train(out, count)
        rate = round(fresh * config.batch_size / (time.perf_counter() - began), 3) if fresh else None
        failures = Failures(out / "failures.jsonl").entries()
        log = out / "log.jsonl"
        result = TrainResult(
            out=out,
            detector=out / DETECTOR_FILE,
            report=out / "report.html",
            images=len(run_.labels),
            failed=len(failures) - run_.labels.rejected,
            rejected=run_.labels.rejected,
            steps=position.step,
            resumed=position.step - fresh,
            skipped=position.skipped,
            losses=last_losses(log),
            measured=next((entry["watch"] for entry in reversed(jsonlines.read(log)) if "watch" in entry), {}),
            images_per_s=rate,
            seconds=round(time.perf_counter() - start, 3),
        )
        on_first(_close, result, run_)
    return result


def _open(config: TrainConfig, run_: "_Run", out: Path) -> None:
    """Compare with what the folder holds, and write what this start is."""
    # Of weights that a name says there is no digest: the name may not differ.
    check_config(config, out / "config.json", _FREE if config.init_digest is None else (*_FREE, "init"))
    write_json(out / "config.json", config.model_dump(mode="json"))
    write_json(out / "environment.json", {**describe(world().device), "processes": world().size})
    # Made once, before several processes add to it.
    Failures(out / "failures.jsonl")
    jsonlines.append(out / "log.jsonl", {"event": "start", "time": time.time(), "images": len(run_.labels)})


def _close(result: TrainResult, run_: "_Run") -> None:
    """Write the detector, what came of the run, and the page."""
    detectors.save(result.detector, run_.model.best)
    facts = {key: value for key, value in asdict(result).items() if key not in ("out", "detector", "report")}
    write_json(result.out / "result.json", {"stage": "train", **facts, "image_root": run_.config.images})
    write_training(result.out, *run_.pictures())
    jsonlines.append(result.out / "log.jsonl", {"event": "end", "time": time.time(), "seconds": result.seconds})


class _Run:
    """The data and the model of a run, and what is done with them."""

    def __init__(self, config: TrainConfig) -> None:
        self.report = Report()
        self.labels = PseudoLabels(
            Path(config.annotations), Path(config.images), config.labels, self.report, config.augment.enough
        )
        check_labels(self.labels)
        self.config, pool = _with_exemplars(complete(config, self.labels))
        config = self.config
        on_gpu = world().device.startswith("cuda")
        self.examples = Examples(self.labels, config.augment, config.copy_paste, config.seed, paste_later=on_gpu)
        self.batches = batches_of(
            self.examples,
            len(self.labels),
            config.batch_size,
            config.seed,
            workers=config.workers,
            collate=self.examples.collate,
        )
        detector = detectors.create(config.detector, generator_for(config.seed, "weights"))
        if config.init is not None:
            load_weights(detector, config.init)
        if pool is not None:
            cast(SOLOv2, detector).contrast_with(pool.embeddings, config.exemplar)
        self.model = Learner(detector, config.ema).to(world().device)
        self.finder = Finder(self.model.best, config.precision)
        self.probe: TruthProbe | None = None
        if config.probe.truth is not None and world().first:
            self.probe = TruthProbe(config.probe, self.finder)

    def embed(self, folder: Path) -> None:
        """Describe what is learned from, where the detector learns to say what it is like."""
        config = self.config
        if learns_embeddings(config.detector):
            path = folder / f"{fingerprint([str(config.digest), config.embedder.identity()])[:12]}.npy"
            on_first(embed_labels, self.labels.file, self.labels.images, config.embedder, world().device, path)
            self.labels.embeddings = path

    def train(self, out: Path, progress: Callable[[StepReport], None]) -> Position:
        config = self.config
        return train(
            self.model,
            self.losses,
            self.batches,
            make_optimiser(self.model.detector, config.optimiser),
            rate_schedule(config.optimiser, config.steps),
            config.steps,
            out,
            batch_size=config.batch_size,
            checkpoint_every=config.checkpoint_every,
            max_norm=config.optimiser.max_norm,
            after_update=self.model.after_update,
            watch=self.watch if config.probe.truth is not None else None,
            watch_every=config.watch_every,
            tensorboard=config.tensorboard,
            progress=progress,
        )

    def losses(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Those of a batch; regions are drawn from the seed, the step and the rank."""
        config, here = self.config, world()
        batch = to_device(batch, here.device)
        images, targets, _ = self.examples.paste(batch) if self.examples.paste_later else batch
        seed = generator_for(config.seed, "regions", step, here.rank).initial_seed()
        draws = torch.Generator(here.device).manual_seed(seed)
        with torch.autocast(draws.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            return self.model.detector([image.float() / 255 for image in images], targets, draws)

    def watch(self, step: int) -> dict[str, float]:
        """What the truth says of the detector."""
        assert self.probe is not None
        return {name: round(value, 6) for name, value in self.probe().items()}

    def pictures(self) -> tuple[list[Picture], list[Picture]]:
        """For the page: some images as they are learned from, and what the detector finds in them."""
        count = min(len(self.labels), _SHOWN)
        indices = batch_indices(len(self.labels), count, 0, self.config.seed)
        batch = self.examples.collate([self.examples(index, draw) for draw, index in enumerate(indices)])
        images, targets, _ = self.examples.paste(batch) if self.examples.paste_later else batch
        learned, found = [], []
        # Of two views of each image, those that objects are pasted into stand first.
        for index, image, target in zip(indices, images, targets, strict=False):
            name = self.labels.name(index)
            try:
                pixels, size = decode(self.labels.images / name, self.finder.enough)
            except ImageError:
                # Another image took its place.
                continue
            instances = Instances(target["masks"], target["boxes"], target["weights"], target["labels"])
            height, width = image.shape[1:]
            learned.append((annotate(name, (height, width), instances), image.permute(1, 2, 0).numpy()))
            [annotations] = self.finder.find([name], [pixels], [size])
            found.append((annotations, pixels))
        return learned, found
