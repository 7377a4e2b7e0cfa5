"""`figureground semantic train`: photographs and their masks to an embedding of every pixel, by MaskContrast.

``segmenter.safetensors`` holds the query encoder and says how to build it (:mod:`figureground.segmenters.checkpoint`).
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from figureground.backbones import own
from figureground.backbones.catalogue import CATALOGUE
from figureground.config import Config, build, merge, requested
from figureground.data.coco import ImageAnnotations, annotate
from figureground.data.mask_pairs import MaskPairsConfig, MaskProposals, Square, mask_pairs
from figureground.data.pseudo_labels import Failures
from figureground.data.resize import resize_image, to_tensor
from figureground.detectors.pretrained import load_trunk
from figureground.errors import ConfigError
from figureground.ops.masks import masks_to_boxes
from figureground.segmenters import checkpoint
from figureground.stages.detecting import digest_of
from figureground.stages.detector_training import Report, weights_file
from figureground.stages.environment import describe
from figureground.stages.labeller import check_device
from figureground.stages.labels import find_labels
from figureground.stages.result import last_losses
from figureground.stages.resume import check_config
from figureground.stages.semantic_recipes import RECIPES, find_recipe
from figureground.storage import jsonlines
from figureground.storage.atomic import make_folder, write_json
from figureground.storage.lock import exclusive
from figureground.structures import Instances
from figureground.training.checkpoint import Position
from figureground.training.dino import parameter_groups
from figureground.training.distributed import joined, on_first, share, world
from figureground.training.loading import batches_of
from figureground.training.loop import StepReport, train
from figureground.training.maskcontrast import MaskContrast, MaskContrastConfig
from figureground.training.order import batch_indices, generator_for
from figureground.viewer import Picture, write_training

_GIB = 2**30
# What may differ when a run goes on: where and how it computes, and where its input lies; digests tell whether that is
# the same.
_FREE = (
    "annotations",
    "images",
    "device",
    "memory_gib",
    "workers",
    "checkpoint_every",
    "watch_every",
    "tensorboard",
)
# Pictures of a kind on the page.
_SHOWN = 8

Batch = tuple[UInt8[Tensor, "B S S C"], Float[Tensor, "B"]]


class SemanticOptimiserConfig(Config):
    """How weights follow from gradients; the defaults are MaskContrast's."""

    name: Literal["sgd", "adamw"] = Field(default="sgd", description="(paper: sgd); adamw for transformers.")
    rate: float = Field(default=0.004, gt=0, description="Learning rate (paper: 0.004).")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of SGD; AdamW's first beta (paper: 0.9).")
    weight_decay: float = Field(default=1e-4, ge=0, description="AdamW: not of norms and biases (paper: 1e-4).")
    power: float = Field(
        default=0.9, ge=0, description="Of what is left of the training, which the rate follows (paper: 0.9)."
    )
    warmup: int = Field(default=0, ge=0, description="Steps in which the rate rises from 0 (paper: none).")
    max_norm: float | None = Field(
        default=None, gt=0, description="The gradient is scaled down to this norm; none: left alone (paper: none)."
    )

    def make(self, model: MaskContrast) -> Optimizer:
        """An optimiser of what is learned in the query encoder."""
        if self.name == "sgd":
            learned = [parameter for parameter in model.query.parameters() if parameter.requires_grad]
            return SGD(learned, lr=self.rate, momentum=self.momentum, weight_decay=self.weight_decay)
        groups = parameter_groups(model.query, self.weight_decay)
        return AdamW(groups, lr=self.rate, betas=(self.momentum, 0.999))

    def schedule(self, steps: int) -> Callable[[int], float]:
        """From a step to the share of the highest rate."""
        return lambda step: min((step + 1) / (self.warmup + 1), 1) * (1 - step / steps) ** self.power


class SemanticTrainConfig(Config):
    """Everything that decides which segmenter is learned; the defaults are MaskContrast's."""

    annotations: str = Field(default="", description="COCO file of the masks.")
    digest: str | None = Field(default=None, description="SHA-256 of that file; filled in when it is read.")
    images: str = Field(default="", description="Folder that its file names are relative to.")
    recipe: str = Field(default="maskcontrast_paper", description=f"What the rest begins as: {', '.join(RECIPES)}.")
    init: str | None = Field(
        default=None, description="Backbone to begin with; none: random weights (paper: MoCo-v2's ResNet-50)."
    )
    init_digest: str | None = Field(default=None, description="SHA-256 of its file; filled in when it is read.")
    pairs: MaskPairsConfig = MaskPairsConfig()
    maskcontrast: MaskContrastConfig = MaskContrastConfig()
    optimiser: SemanticOptimiserConfig = SemanticOptimiserConfig()
    batch_size: int = Field(
        default=64, ge=2, description="Masks a step, of all processes together (paper: 64; without labels 128)."
    )
    epochs: float = Field(default=40, gt=0, description="Times that every mask is seen (paper: 40).")
    steps: int | None = Field(default=None, ge=1, description="Of training; none: as many as the epochs take.")
    seed: int = Field(default=0, ge=0, description="Of the first weights, the order and all draws.")
    store_side: int = Field(
        default=448, ge=16, le=1024, description="Side of the squares that images are kept as and cut from, px."
    )
    memory_gib: float = Field(
        default=16, ge=0, description="Squares that take no more, GiB, stay in memory; others are read every time."
    )
    workers: int = Field(default=0, ge=0, le=256, description="Processes that read images, beside each that trains.")
    checkpoint_every: int = Field(default=250, ge=1, description="Steps: what a kill can cost at most.")
    watch_every: int = Field(default=250, ge=1, description="Steps between two measurements.")
    licence: str = Field(
        default="not stated; the terms of the images it was learned from may apply",
        description="Of the weights; written into their file.",
    )
    tensorboard: bool = Field(default=False, description="Write what is measured for TensorBoard too.")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @field_validator("annotations", "images")
    @classmethod
    def _absolute(cls, path: str) -> str:
        # A run can then be gone on with from any folder.
        return os.path.abspath(os.path.expanduser(path)) if path else path

    @field_validator("init")
    @classmethod
    def _absolute_file(cls, source: str | None) -> str | None:
        return os.path.abspath(source) if source and os.path.exists(source) else source


@dataclass(frozen=True, slots=True)
class SemanticTrainResult:
    """What was learned.

    Attributes:
        out: The run's folder.
        segmenter: ``segmenter.safetensors``.
        report: The page to look at.
        images: Images with masks to learn from.
        proposals: Masks that are learned from.
        left_out: Images that have masks, but none of a size to learn from.
        failed: Images that could not be used where one was to be; they are named in ``failures.jsonl``.
        rejected: Annotations that could not be used; named there, too.
        steps: In all.
        resumed: Steps that an earlier start had done.
        skipped: Steps without an update, because something was not finite.
        losses: By name, the mean of the last steps (50 at most).
        measured: By name, what was measured last; see :meth:`figureground.training.maskcontrast.MaskContrast.measure`.
        images_per_s: Of this start, or ``None`` where nothing was left to do.
        seconds: Wall-clock time of this start.
    """

    out: Path
    segmenter: Path
    report: Path
    images: int
    proposals: int
    left_out: int
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
    init: str | None = None,
    **shorthands: Any,
) -> SemanticTrainConfig:
    """The configuration a command line asks for: the recipe, the network of ``init``, and ``--set`` over both.

    Args:
        labels: A COCO file, or the folder of a run.
        images: What that run was given: files and folders, the deepest folder of which that holds them all is that of
            the images; none: as the run says.
        assignments: ``KEY=VALUE``.
        recipe: Its name; none: `maskcontrast_paper` on a GPU, else `small`.
        init: Backbone to begin with; of one of our own, and of DINO's transformers by name, the network is known.
        shorthands: Values of other top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
        UsageError: If there is no such file or recipe, or it is not said where the images are.
        WeightsError: If ``init`` is a damaged backbone.
    """
    asked = requested(assignments, {**shorthands, "recipe": recipe, "init": init})
    on_gpu = str(asked.get("device", "cpu")).startswith("cuda")
    name = asked.setdefault("recipe", "maskcontrast_paper" if on_gpu else "small")
    tree = find_recipe(name).settings()
    if asked.get("init"):
        tree = merge(tree, {"maskcontrast": {"segmenter": _network_of(str(asked["init"]))}})
    annotations, folder = find_labels(Path(labels), images)
    return build(SemanticTrainConfig, merge(tree, {**asked, "annotations": str(annotations), "images": str(folder)}))


def _network_of(init: str) -> dict[str, Any]:
    """What is known of the trunk that weights are of: settings of :class:`SegmenterConfig`."""
    row = CATALOGUE.get(init)
    if row is not None and row.family == "dino":
        # ViT-S and ViT-B alike: 12 blocks, positions for 224 px.
        vit = {"patch_size": row.patch_size, "width": row.width, "heads": row.heads, "depth": 12, "image_size": 224}
        return {"arch": "vit", "vit": vit, "mean": row.mean, "std": row.std}
    file = own.find_file(init)
    if file is None or file.name != own.FILE:
        return {}
    known = own.read(file)
    return {"arch": "vit", "vit": asdict(known.shape), "mean": known.mean, "std": known.std}


def run(
    config: SemanticTrainConfig, out: Path, progress: Callable[[StepReport], None] = lambda _: None
) -> SemanticTrainResult:
    """Learn a segmenter and write ``segmenter.safetensors``; go on where an earlier start was stopped.

    Several processes that ``torchrun`` has started learn one segmenter together; each takes its part of every batch,
    and the prototypes are those of all. Rank 0 writes and reports. Every draw is a function of the seed, the step and
    the rank, so that as many processes learn the same.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        progress: Called after every step.

    Raises:
        UsageError: If the masks cannot be read, or none is left to learn from.
        ConfigError: If ``out`` holds a run with another configuration or other masks, or sizes do not fit together.
        WeightsError: If the weights to begin with cannot be had or do not fit.
        RunError: If no image can be used, the losses are not finite, the folder cannot be written, or another process
            is writing it.

    Reference:
        Van Gansbeke et al., Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals, ICCV 2021; its
        parts say where they deviate.
    """
    start = time.perf_counter()
    check_device(config.device)
    begun = weights_file(config.init) if config.init is not None else None
    config = config.replace(
        digest=digest_of(Path(config.annotations)), init_digest=None if begun is None else digest_of(begun)
    )
    with joined(config.device) as here, contextlib.ExitStack() as stack:
        # First what may be refused: it leaves no folder behind.
        learning = _Learning(config)
        if here.first:
            make_folder(out)
            stack.enter_context(exclusive(out))
        on_first(_open, config, learning.proposals, out)
        learning.report.write_to(out / "failures.jsonl")
        fresh, began = 0, time.perf_counter()

        def count(report: StepReport) -> None:
            nonlocal fresh
            fresh += 1
            progress(report)

        position = learning.train(out, count)
        rate = round(fresh * config.batch_size / (time.perf_counter() - began), 3) if fresh else None
        proposals, log = learning.proposals, out / "log.jsonl"
        result = SemanticTrainResult(
            out=out,
            segmenter=out / checkpoint.FILE,
            report=out / "report.html",
            images=proposals.used,
            proposals=len(proposals),
            left_out=proposals.left_out,
            failed=len(Failures(out / "failures.jsonl").entries()) - proposals.rejected,
            rejected=proposals.rejected,
            steps=position.step,
            resumed=position.step - fresh,
            skipped=position.skipped,
            losses=last_losses(log),
            measured=next((entry["watch"] for entry in reversed(jsonlines.read(log)) if "watch" in entry), {}),
            images_per_s=rate,
            seconds=round(time.perf_counter() - start, 3),
        )
        on_first(_close, result, learning)
    return result


def _open(config: SemanticTrainConfig, proposals: MaskProposals, out: Path) -> None:
    """Compare with what the folder holds, and write what this start is."""
    # Of weights that a name says there is no digest: the name may not differ.
    check_config(config, out / "config.json", _FREE if config.init_digest is None else (*_FREE, "init"))
    write_json(out / "config.json", config.model_dump(mode="json"))
    write_json(out / "environment.json", {**describe(world().device), "processes": world().size})
    # Made once, before several processes add to it.
    Failures(out / "failures.jsonl")
    jsonlines.append(out / "log.jsonl", {"event": "start", "time": time.time(), "images": proposals.used})


def _close(result: SemanticTrainResult, learning: "_Learning") -> None:
    """Write the segmenter, what came of the run, and the page."""
    learning.export(result)
    facts = {key: value for key, value in asdict(result).items() if key not in ("out", "segmenter", "report")}
    root = learning.config.images
    write_json(result.out / "result.json", {"stage": "semantic train", **facts, "image_root": root})
    write_training(result.out, *learning.pictures())
    jsonlines.append(result.out / "log.jsonl", {"event": "end", "time": time.time(), "seconds": result.seconds})


class _Learning:
    """The data and the model of a run, and what is done with them."""

    def __init__(self, config: SemanticTrainConfig) -> None:
        self.config = config
        self.device = torch.device(world().device)
        self.report = Report()
        part = len(share(range(config.batch_size)))
        if part < 2 and config.maskcontrast.segmenter.arch != "vit":
            raise ConfigError(
                f"A ResNet learns from two images or more at a time; {config.batch_size} are shared by "
                f"{world().size} processes.",
                f"Add --set batch_size={2 * world().size}.",
            )
        self.proposals = MaskProposals(
            Path(config.annotations), Path(config.images), config.pairs, config.store_side, self.report
        )
        self.steps = config.steps or max(round(config.epochs * len(self.proposals) / config.batch_size), 1)
        self.model = MaskContrast(config.maskcontrast, generator_for(config.seed, "weights"))
        if config.init is not None:
            load_trunk(self.model.query.trunk, weights_file(config.init) or config.init)
            self.model.begin_with_query()
        self.model.use(self.device)

    def train(self, out: Path, progress: Callable[[StepReport], None]) -> Position:
        config = self.config
        return train(
            self.model,
            self.losses,
            self.batches(),
            config.optimiser.make(self.model),
            config.optimiser.schedule(self.steps),
            self.steps,
            out,
            batch_size=config.batch_size,
            checkpoint_every=config.checkpoint_every,
            max_norm=config.optimiser.max_norm,
            after_update=lambda _: self.model.update(),
            watch=self.model.measure,
            watch_every=config.watch_every,
            tensorboard=config.tensorboard,
            progress=progress,
        )

    def losses(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Those of a batch, its views drawn from the seed, the step and the rank."""
        squares, aspects = batch
        draws = generator_for(self.config.seed, "views", step, world().rank)
        pairs = mask_pairs(squares.to(self.device, non_blocking=True), aspects, self.config.pairs, draws)
        views = (pairs.queries, pairs.query_masks, pairs.keys, pairs.key_masks)
        return self.model.losses(*views, draws, pairs.figures)

    def batches(self) -> Callable[[int], Iterator[Batch]]:
        """Squares held in memory where they fit, else read by workers; the same either way."""
        config, count = self.config, len(self.proposals)
        batched = partial(batches_of, count=count, batch_size=config.batch_size, seed=config.seed)
        if count * config.store_side**2 * config.pairs.channels > config.memory_gib * _GIB:
            return batched(_Example(self.proposals), workers=config.workers, collate=_stack)
        # In place: a list that is stacked would need the memory twice.
        shape = count, config.store_side, config.store_side, config.pairs.channels
        held = torch.empty(shape, dtype=torch.uint8), torch.empty(count)
        for index in range(count):
            square, held[1][index] = self.proposals.example(index)
            held[0][index] = torch.from_numpy(square)
        places = batched(lambda index, draw: index, collate=torch.tensor)

        def chosen(step: int) -> Iterator[Batch]:
            return ((held[0][rows], held[1][rows]) for rows in places(step))

        return chosen

    def export(self, result: SemanticTrainResult) -> None:
        """Write the query encoder."""
        config = self.config
        facts = {
            "method": "maskcontrast",
            "recipe": config.recipe,
            "masks": config.pairs.masks,
            "steps": result.steps,
            "batch_size": config.batch_size,
            "images": result.images,
            "licence": config.licence,
        }
        checkpoint.save(result.segmenter, self.model.query, facts)

    @torch.inference_mode()
    def pictures(self) -> tuple[list[Picture], list[Picture]]:
        """For the page: some pairs of views, then what is found in photographs and the embeddings of their pixels."""
        config, count = self.config, min(len(self.proposals), _SHOWN)
        indices = batch_indices(len(self.proposals), count, 0, config.seed)
        names = [self.proposals.name(index) for index in indices]
        squares, aspects = _stack([self.proposals.example(index) for index in indices])
        pairs = mask_pairs(squares, aspects, config.pairs, generator_for(config.seed, "pictures"))
        learned = []
        for place, name in enumerate(names):
            learned.append(_picture(name, _pixels(pairs.queries[place]), pairs.query_masks[place]))
            learned.append(_picture(f"{name}, again", _pixels(pairs.keys[place]), pairs.key_masks[place]))

        self.model.query.eval()
        photographs, masks, embeddings = [], [], []
        for square, aspect in zip(squares, aspects.tolist(), strict=True):
            size = round(config.pairs.size / aspect**0.5), round(config.pairs.size * aspect**0.5)
            photographs.append(resize_image(square[..., :3].numpy().copy(), size))
            embedding, saliency = self.model.query(to_tensor(photographs[-1], self.device))
            masks.append(saliency[0].cpu() > 0)
            embeddings.append(torch.nn.functional.normalize(embedding[0], dim=0).flatten(1).T.cpu())
        self.model.train()
        found = []
        colours = _colours(torch.cat(embeddings)).split([len(embedding) for embedding in embeddings])
        for name, pixels, mask, colour in zip(names, photographs, masks, colours, strict=True):
            found.append(_picture(name, pixels, mask))
            found.append(_picture(f"{name}, embedding", colour.numpy().reshape(pixels.shape)))
        return learned, found


class _Example:
    """Reads a proposal; picklable, for the workers."""

    def __init__(self, proposals: MaskProposals) -> None:
        self.proposals = proposals

    def __call__(self, index: int, draw: int) -> Square:
        return self.proposals.example(index)


def _stack(squares: list[Square]) -> Batch:
    pixels, aspects = zip(*squares, strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.tensor(aspects, dtype=torch.float32)


def _colours(embeddings: Float[Tensor, "N D"]) -> UInt8[Tensor, "N 3"]:
    """The three directions in which embeddings differ most, as red, green and blue."""
    centred = embeddings - embeddings.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    # An embedding of two numbers has no third direction.
    places = torch.nn.functional.pad(centred @ vectors[:, -3:], (3 - min(vectors.shape[1], 3), 0))
    spread = 3 * places.std(0).clamp(min=1e-6)
    return ((places / spread + 1) * 127.5).clamp(0, 255).byte()


def _pixels(view: Float[Tensor, "3 s s"]) -> UInt8[np.ndarray, "s s 3"]:
    return (255 * view).round().byte().permute(1, 2, 0).numpy().copy()


def _picture(name: str, pixels: UInt8[np.ndarray, "H W 3"], mask: Tensor | None = None) -> Picture:
    """Pixels with the mask on them, where there is one."""
    size = pixels.shape[0], pixels.shape[1]
    if mask is None or not mask.any():
        return ImageAnnotations(file_name=name, height=size[0], width=size[1], annotations=[]), pixels
    masks = mask[None]
    ones = torch.ones(1)
    return annotate(name, size, Instances(masks, masks_to_boxes(masks), ones, ones.long())), pixels
