"""`figureground semantic probe`: how much a linear layer on embeddings that stay as they are can tell of classes."""

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from figureground.config import build, requested
from figureground.data.images import decode
from figureground.data.semantic_truth import IGNORE, SemanticTruth, read_class_map
from figureground.errors import ImageError, UsageError
from figureground.evaluation.semantic_miou import ImageConfusions, confusion_matrix, semantic_scores
from figureground.refine.class_crf import class_crf
from figureground.refine.dense_crf import DenseCRFConfig
from figureground.runners import Runner, run_serial
from figureground.stages.instance_features import pack, unpack
from figureground.stages.result import Progress
from figureground.stages.semantic_features import (
    PUBLISHED_CRF,
    Embedder,
    SemanticConfig,
    check_digests,
    check_same_classes,
    embedding_name,
    in_turn,
    open_truth,
    opened_run,
    prepare_looks,
)
from figureground.stages.semantic_report import (
    SemanticResult,
    absent_note,
    check_some,
    failures_of,
    make_cards,
    map_path,
    mean_iou,
    write_page,
    write_result,
)
from figureground.stages.sharding import File, Record, Sweep, one_by_one
from figureground.storage.atomic import make_folder, write_bytes
from figureground.storage.shards import fingerprint
from figureground.training.linear_probe import LinearProbeConfig, PixelSamples, learn
from figureground.viewer.palette import write_class_map

FILE = "probe.safetensors"


class SemanticProbeConfig(SemanticConfig):
    """Everything that decides what `semantic probe` writes."""

    train: str = Field(default="", description="Truth of the images that the layer is learned on: as `val`.")
    train_images: str | None = Field(default=None, description="Folder of its images; none: as the truth says.")
    views: int = Field(
        default=4, ge=1, le=1000, description="Of each training image; the first as it is (MaskContrast: one an epoch)."
    )
    pixels: int = Field(default=256, ge=1, le=1_000_000, description="Drawn from each view (MaskContrast: all).")
    rotation: float = Field(default=5.0, ge=0, le=180, description="Of a view, degrees at most (MaskContrast: 5).")
    scale: tuple[float, float] = Field(
        default=(0.75, 1.25), description="Of a view, times the size, least and most (MaskContrast: 0.75, 1.25)."
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="Chance that a view is flipped (MaskContrast: 0.5).")
    probe: LinearProbeConfig = LinearProbeConfig()
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of views, pixels, order and first weights.")
    crf: bool = Field(default=False, description="Draw the classes to the edges.")
    dense_crf: DenseCRFConfig = PUBLISHED_CRF
    resamples: int = Field(default=1000, ge=0, le=100_000, description="Of the bootstrap over images; 0: no interval.")
    pictures: int = Field(default=48, ge=0, le=1000, description="Images on the page.")

    @field_validator("train", "train_images")
    @classmethod
    def _train_absolute(cls, path: str | None) -> str | None:
        return os.path.abspath(os.path.expanduser(path)) if path else path


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticProbeResult(SemanticResult):
    """What was made.

    Attributes:
        probe: The layer.
        trained: Images that it was learned on.
        held_out: Images that chose the epoch.
        epoch: The one that was chosen, from 1.
        held_out_miou: Of its pixels, in per cent.
        accuracy: Share of the measured pixels with the right class, in per cent.
    """

    probe: Path
    trained: int
    held_out: int
    epoch: int
    held_out_miou: float
    accuracy: float | None


def configure(assignments: Sequence[str] = (), **shorthands: Any) -> SemanticProbeConfig:
    """The configuration a command line asks for: ``--set``, and the shorthands over it.

    Args:
        assignments: ``KEY=VALUE``.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
    """
    return build(SemanticProbeConfig, requested(assignments, shorthands))


def run(
    config: SemanticProbeConfig,
    out: Path,
    runner: Runner = run_serial,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SemanticProbeResult:
    """Learn a linear layer from labelled images, and measure it on others, once.

    Can be killed at any time and called again: embeddings that are made stay made.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        runner: What applies the work to the shards.
        progress: Called after every image and once before the first.

    Raises:
        UsageError: If there is no truth, it has other classes than the other one, there are too few images to learn
            from, or a file is wrong.
        ConfigError: If ``out`` holds a run with another configuration.
        RunError: If the folder cannot be written or another process is writing it.

    Reference:
        Van Gansbeke et al., ICCV 2021, section 4.2, and the published code. Deviates: as
        :func:`~figureground.training.linear_probe.learn`; a few views of each image are embedded once, where the paper
        embeds a new one each epoch; the aspect ratio is kept.
    """
    start = time.perf_counter()
    # Before the folder is made: a wrong name or missing weights leave nothing behind.
    train, val = open_truth(config, "train"), open_truth(config, "val")
    check_same_classes(train, val)
    if len(train.images.names) < 2:
        raise UsageError(f"{train.path} has one image; one is to learn from, and another to choose the epoch by.")
    apply = partial(Applying, out=str(out))
    config, looks = prepare_looks(config, {"train": (train.images, Sampling), "val": (val.images, apply)}, runner)
    with opened_run(out, config, list(looks)):
        sweeps = {
            name: Sweep(out / name, images, images.names, config.shard_size) for name, (images, _) in looks.items()
        }
        reports = in_turn(progress, [sweep.total for sweep in sweeps.values()])
        sweeps["train"].run(looks["train"][1], runner, next(reports))
        samples, print_ = _gathered(sweeps["train"])
        facts = _learned(config, samples, print_, len(val.classes), out)
        sweeps["val"].run(looks["val"][1], runner, next(reports))
        result = _write(config, val, sweeps, samples, facts, out, start)
        sweeps["val"].log("end", seconds=result.seconds)
    return result


class Sampling:
    """Draws embedded pixels from views of the training images.

    Attributes:
        seconds: Spent in each part.
    """

    def __init__(self, config: SemanticProbeConfig, embedder: Embedder | None = None) -> None:
        self.config, self._embedder = config, embedder or Embedder(config)
        self.seconds = self._embedder.seconds
        self._truth = open_truth(config, "train")
        self.digests = {"model": self._embedder.digest, "train": self._truth.digest}
        check_digests(config, self.digests)

    def examine(self, files: Sequence[File]) -> Iterator[Record | ImageError]:
        """The record of each image: ``vectors``, ``labels`` and ``views`` of pixels, or what is wrong with it."""
        return one_by_one(self._look, files)

    def _look(self, path: Path, name: str) -> Record:
        config = self.config
        with self._embedder.timed("decode"):
            pixels, size = decode(path)
            true = self._truth.class_map(name, size)
        vectors, labels, views = [], [], []
        for view in range(config.views):
            # The same whatever else is looked at, and in which process.
            rng = np.random.default_rng([config.seed, zlib.crc32(name.encode("utf-8", "surrogateescape")), view])
            seen, numbers, scale = _view(pixels, true, config, rng) if view else (pixels, true, 1.0)
            places = np.flatnonzero(numbers != IGNORE)
            places = np.sort(rng.choice(places, min(config.pixels, len(places)), replace=False))
            features = self._embedder.features(seen, size, scale)
            vectors.append(at_pixels(features, places, size).cpu().numpy())
            labels += numbers.ravel()[places].tolist()
            views += [view] * len(places)
        return {
            "file_name": name,
            "vectors": pack(np.concatenate(vectors)) if labels else "",
            "labels": labels,
            "views": views,
            "instances": 0,
        }


class Applying:
    """Gives each pixel of an image the class that the layer says, and counts what is right.

    Args:
        config: What to use.
        out: The run's folder, in which the layer is by the time that an image is looked at.
        embedder: If this process has one already.

    Attributes:
        seconds: Spent in each part.
    """

    def __init__(self, config: SemanticProbeConfig, out: str, embedder: Embedder | None = None) -> None:
        self.config, self._out, self._embedder = config, Path(out), embedder or Embedder(config)
        self.seconds = self._embedder.seconds
        self._truth = open_truth(config, "val")
        self.digests = {"model": self._embedder.digest, "val": self._truth.digest}
        check_digests(config, self.digests)
        self._layer: dict[str, Tensor] | None = None

    def examine(self, files: Sequence[File]) -> Iterator[Record | ImageError]:
        """The record of each image, with ``counts`` of (predicted, true, pixels), or what is wrong with it."""
        return one_by_one(self._look, files)

    @torch.inference_mode()
    def _look(self, path: Path, name: str) -> Record:
        if self._layer is None:
            weights = safetensors.torch.load_file(self._out / FILE)
            self._layer = {key: value.to(self.config.device) for key, value in weights.items()}
        with self._embedder.timed("decode"):
            pixels, size = decode(path)
            true = self._truth.class_map(name, size)
        features = self._embedder.features(pixels, size)
        with self._embedder.timed("classes"):
            logits = functional.conv2d(features[None], self._layer["weight"][:, :, None, None], self._layer["bias"])[0]
            if self.config.crf:
                image = torch.from_numpy(np.array(pixels)).to(logits.device)
                soft = functional.interpolate(logits[None], size=size, mode="bilinear")[0].softmax(0)
                predicted = class_crf(image, soft, self.config.dense_crf).argmax(0)
            else:
                predicted = largest(logits, size)
        numbers = predicted.cpu().numpy()
        write_class_map(map_path(self._out, name), numbers)
        classes = len(self._truth.classes)
        counts = confusion_matrix(numbers, true, classes, classes)
        rows, columns = counts.nonzero()
        found = [rows.tolist(), columns.tolist(), counts[rows, columns].tolist()]
        return {"file_name": name, "height": size[0], "width": size[1], "counts": found, "instances": 0}


def _view(
    pixels: UInt8[np.ndarray, "H W 3"],
    true: UInt8[np.ndarray, "H W"],
    config: SemanticProbeConfig,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"], float]:
    """An image and its truth, perhaps flipped and turned a little, and the scale that it is to be looked at."""
    flipped, angle = rng.random() < config.flip, rng.uniform(-config.rotation, config.rotation)
    scale = rng.uniform(*config.scale)
    if flipped:
        pixels, true = pixels[:, ::-1], true[:, ::-1]
    image, numbers = (Image.fromarray(np.ascontiguousarray(array)) for array in (pixels, true))
    turned = image.rotate(angle, Image.Resampling.BILINEAR)
    # What is turned into the picture does not count.
    return np.asarray(turned), np.asarray(numbers.rotate(angle, Image.Resampling.NEAREST, fillcolor=IGNORE)), scale


def at_pixels(
    features: Float[Tensor, "D h w"], places: Int64[np.ndarray, "P"], size: tuple[int, int]
) -> Float[Tensor, "P D"]:
    """Features at pixels, by bilinear interpolation, as if they had been brought to the size of the image.

    Args:
        features: Of patches or of a smaller image.
        places: Row by row.
        size: ``(height, width)`` of the image.
    """
    height, width = size
    rows, columns = np.divmod(places, width)
    grid = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], axis=-1).astype(np.float32)
    where = torch.from_numpy(grid).to(features.device)[None, None]
    found = functional.grid_sample(features[None], where, padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def largest(logits: Float[Tensor, "C h w"], size: tuple[int, int]) -> Int64[Tensor, "H W"]:
    """The class with the largest logit at each pixel, brought to ``size`` one class at a time."""
    best = torch.full(size, -torch.inf, device=logits.device)
    found = torch.zeros(size, dtype=torch.int64, device=logits.device)
    for number, plane in enumerate(logits):
        plane = functional.interpolate(plane[None, None], size=size, mode="bilinear")[0, 0]
        found[plane > best] = number
        best = torch.maximum(best, plane)
    return found


def _gathered(sweep: Sweep) -> tuple[PixelSamples, str]:
    """The embedded pixels of the training images, the only pixels that are held, and their fingerprint."""
    vectors, labels, views, counts, prints = [], [], [], [], []
    for record in sweep.records():
        # An image of which nothing counts teaches nothing.
        if count := len(record["labels"]):
            vectors.append(unpack(record["vectors"], count).astype(np.float16))
            labels += record["labels"]
            views += record["views"]
            counts.append(count)
            prints.append(f"{record['file_name']} {record['vectors']} {record['labels']}")
    if len(counts) < 2:
        raise UsageError(
            f"{len(counts)} of the training images have a pixel that counts; one is to learn from, and another to "
            "choose the epoch by."
        )
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    joined = torch.from_numpy(np.concatenate(vectors))
    return PixelSamples(joined, torch.tensor(labels), images, torch.tensor(views)), fingerprint(prints)


def _learned(
    config: SemanticProbeConfig, samples: PixelSamples, print_: str, classes: int, out: Path
) -> dict[str, Any]:
    """Learn the layer and write it, or find that an earlier start has, from the same pixels."""
    path = out / FILE
    if path.exists():
        with safetensors.safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get("figureground_probe", "{}"))
        if said.get("fingerprint") == print_:
            return said
    # What another layer has said of the images.
    shutil.rmtree(out / "val" / "shards")
    make_folder(out / "val" / "shards")

    def measure(found: Int64[Tensor, "N"], true: Int64[Tensor, "N"]) -> float:
        counts = confusion_matrix(found.numpy(), true.numpy(), classes, classes)
        return semantic_scores(counts, range(classes)).miou or 0.0

    layer = learn(config.probe, samples, classes, measure, torch.Generator().manual_seed(config.seed))
    said = {
        "fingerprint": print_,
        "epoch": layer.epoch,
        "held_out": layer.held_out,
        "curve": [[round(loss, 5), round(score, 5)] for loss, score in layer.curve],
    }
    weights = {"weight": layer.weight.contiguous(), "bias": layer.bias}
    write_bytes(path, safetensors.torch.save(weights, {"figureground_probe": json.dumps(said)}))
    return said


def _write(
    config: SemanticProbeConfig,
    val: SemanticTruth,
    sweeps: dict[str, Sweep],
    samples: PixelSamples,
    facts: dict[str, Any],
    out: Path,
    start: float,
) -> SemanticProbeResult:
    """Write result and report."""
    files = list(sweeps["val"].records())
    check_some(files, sweeps["val"])
    classes = len(val.classes)
    confusions = ImageConfusions(len(files), classes, classes)
    for place, record in enumerate(files):
        rows, columns, counts = (np.array(part, dtype=np.int64) for part in record["counts"])
        single = np.zeros((len(rows), classes), dtype=np.int64)
        single[np.arange(len(rows)), columns] = counts
        confusions.add(np.full_like(rows, place), rows, single)
    matched = tuple(range(classes))
    scores = semantic_scores(confusions.total(), matched)
    result = SemanticProbeResult(
        out=out,
        report=out / "report.html",
        images=len(files),
        miou=mean_iou([(confusions, matched)], scores.miou, len(files), config.resamples),
        per_class={
            name: None if value is None else round(100 * value, 3)
            for name, value in zip(val.classes, scores.per_class, strict=True)
        },
        notes=_notes(config, val, confusions, samples),
        failed=len(failures_of(sweeps)),
        resumed=sum(sweep.total - sweep.fresh for sweep in sweeps.values()),
        seconds=round(time.perf_counter() - start, 3),
        probe=out / FILE,
        trained=samples.count - facts["held_out"],
        held_out=facts["held_out"],
        epoch=facts["epoch"],
        held_out_miou=round(100 * facts["curve"][facts["epoch"] - 1][1], 3),
        accuracy=None if scores.accuracy is None else round(100 * scores.accuracy, 3),
    )
    write_result("semantic probe", result, sweeps, probe=FILE, curve=facts["curve"])
    shown = [
        (
            "epoch",
            f"{result.epoch}",
            f"of {config.probe.epochs}; {result.held_out_miou:.1f} % on {result.held_out} held out",
        ),
        ("images", f"{result.images:,}", f"learned from {result.trained:,}"),
    ]
    numbers = [] if result.accuracy is None else [("pixels that are right", f"{result.accuracy:.1f} %")]

    def predicted(place: int) -> UInt8[np.ndarray, "H W"]:
        return read_class_map(map_path(out, files[place]["file_name"]))

    cards = make_cards(val, files, config.pictures, predicted)
    write_page("semantic probe", result, val, shown, numbers=numbers, cards=cards)
    return result


def _notes(
    config: SemanticProbeConfig, val: SemanticTruth, confusions: ImageConfusions, samples: PixelSamples
) -> tuple[str, ...]:
    features = f"the last features of {config.model}" if config.model is not None else embedding_name(config)
    notes = [f"A linear layer on {features}; the epoch was chosen on images held out of training."]
    pixels = confusions.total().sum(0).tolist()
    held = torch.bincount(samples.labels, minlength=len(val.classes)).tolist()
    missing = [name for name, has, true in zip(val.classes, held, pixels, strict=True) if true and not has]
    if missing:
        notes.append(f"No pixel that was learned from is {', '.join(missing)}.")
    return (*notes, *absent_note(val, pixels))
