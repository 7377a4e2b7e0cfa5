"""`figureground self-train`: a detector learns from what it finds itself, round by round."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from figureground.config import build, merge, requested
from figureground.data.listing import list_images
from figureground.errors import UsageError
from figureground.stages.detecting import detector_file, digest_of, load_detector
from figureground.stages.labels import annotations_of
from figureground.stages.rounds import (
    FILLED_IN_TRAIN,
    FREE_IN_TRAIN,
    Bars,
    Made,
    Photos,
    RoundsConfig,
    RoundsResult,
    Standing,
    check_labels,
    finish,
    later,
    opened,
    run_round,
    settings_of_rounds,
)
from figureground.stages.train import TrainConfig, settings_of

# What may differ when a run goes on: where it computes, how many rounds, and where its input lies; the digests tell
# whether that is the same.
_FREE = ("device", "rounds", "detector", "labels", "predict.threads", *(f"train.{key}" for key in FREE_IN_TRAIN))


class SelfTrainConfig(RoundsConfig):
    """Everything that decides what `self-train` learns."""

    detector: str = Field(default="", description="Folder of a training, or a file of weights.")
    detector_digest: str | None = Field(default=None, description="SHA-256 of it; filled in when it is read.")
    labels: str = Field(default="", description="COCO file of the pseudo-labels that it was trained with.")
    labels_digest: str | None = Field(default=None, description="SHA-256 of it; filled in when it is read.")
    images: tuple[str, ...] = Field(default=(), description="Files and folders of the images.")
    rounds: int = Field(default=3, ge=1, description="How often the detector is trained anew (CutLER: 3).")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @field_validator("detector", "labels")
    @classmethod
    def _absolute(cls, path: str) -> str:
        return os.path.abspath(os.path.expanduser(path)) if path else path

    @field_validator("images")
    @classmethod
    def _all_absolute(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in images)


def configure(
    detector: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    images: Sequence[str | os.PathLike[str]] = (),
    assignments: Sequence[str] = (),
    *,
    recipe: str | None = None,
    **shorthands: Any,
) -> SelfTrainConfig:
    """The configuration a command line asks for: what follows the detector's training, and what is set over it.

    Args:
        detector: Folder of a training, or a file of weights; its architecture is kept.
        labels: Run or COCO file that it was trained with; none: as the training says.
        images: What that run was given; none: as the training says.
        assignments: ``KEY=VALUE``.
        recipe: What the rounds are trained by; none: by what follows the detector's training, and for a file of
            weights by `cutler_self_train`.
        shorthands: Values of top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
        UsageError: If there is no such detector or recipe, or it is not said where pseudo-labels and images are.
        WeightsError: If the detector cannot be read.
    """
    asked = requested(assignments, shorthands, [os.fspath(path) for path in images])
    before = _training_of(Path(detector).expanduser()) or {}
    own = load_detector(detector).config
    if recipe is None and before:
        first = build(TrainConfig, {key: value for key, value in before.items() if key not in FILLED_IN_TRAIN})
    else:
        first = settings_of(recipe or "cutler_self_train", {"detector": own.detector})
    rounds = settings_of_rounds(first)
    # What it is made of follows from the weights; how it learns does not.
    learns = later(first).detector.model_dump(include={"drop_loss": True, "rpn": {"nms": True, "train": True}})
    rounds["train"]["detector"] = merge(own.model_dump(), learns)
    labels = labels or before.get("annotations")
    if before.get("images"):
        asked.setdefault("images", [before["images"]])
    for flag, given in (("--labels", labels), ("--images", asked.get("images"))):
        if not given:
            raise UsageError(
                f"{flag} is missing: {detector} does not say what it was trained with.",
                "Example: figureground self-train runs/detector --labels runs/photos --images photos/ --out runs/own",
            )
    file = annotations_of(Path(labels or ""))
    tree = {**rounds, "detector": os.fspath(detector), "labels": str(file)}
    return build(SelfTrainConfig, merge(tree, asked))


def _training_of(detector: Path) -> dict[str, Any] | None:
    """The configuration of the training that a folder holds, or of the last rounds of it."""
    folder = detector if detector.is_dir() else detector.parent
    try:
        tree = json.loads((folder / "config.json").read_text("utf-8"))
        for key in ("self_train", "train"):
            tree = tree.get(key, tree)
    except (OSError, ValueError, AttributeError):
        return None
    return tree if isinstance(tree, dict) and "recipe" in tree else None


def run(config: SelfTrainConfig, out: Path, bars: Bars | None = None) -> RoundsResult:
    """Train a detector anew, round by round, on what the one before found and on the older masks that it did not find.

    A round predicts on the training images, keeps what scores high enough, merges it with the pseudo-labels before
    (:mod:`figureground.data.merge`) or, as FreeSOLO, puts it in their place, and trains on from the weights before or
    afresh. Its folder is ``round-N``, with ``predictions``, ``labels.json`` and ``train``. Can be killed at any time
    and called again: steps that are done are not done again.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        bars: How it speaks of each step; none: not at all.

    Raises:
        UsageError: If there is no detector, or the pseudo-labels cannot be read or are about other images.
        ConfigError: If ``out`` holds a run with another configuration, detector or pseudo-labels.
        WeightsError: If the detector cannot be read.
        RunError: If no image can be used, the losses are not finite, the folder cannot be written, or another process
            is writing it.

    Reference:
        Wang et al., CutLER, CVPR 2023, section 3.4; Wang et al., FreeSOLO, CVPR 2022, section 3.4.
    """
    start = time.perf_counter()
    file, labels_file = detector_file(config.detector), annotations_of(Path(config.labels))
    config = config.replace(detector_digest=digest_of(file), labels_digest=digest_of(labels_file))
    listed = list_images(config.images, exclude=out)
    check_labels(labels_file, listed)
    photos = Photos(config.images, listed.root)
    detector, labels = Made(file, str(config.detector_digest)), Made(labels_file, str(config.labels_digest))
    with opened(out, config, _FREE, config.device, bars or Bars()) as chain:
        first, counts = labels, []
        standings = [Standing("", "Before", detector)]
        for number in range(1, config.rounds + 1):
            labels, detector = run_round(chain, config, number, photos, config.device, labels, detector)
            counts.append(labels.facts)
            standings.append(Standing(f"round-{number}/train", f"Round {number}", detector))
        return finish(chain, first, photos.root, standings, counts, config.device, start, stage="self-train")
