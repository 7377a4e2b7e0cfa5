"""`figureground learn`: a folder of photographs to a detector, in one command."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from figureground import detectors
from figureground.config import Config, build, merge, requested
from figureground.data.annotation_file import annotations_name
from figureground.data.listing import list_images
from figureground.data.truth import read_truth
from figureground.errors import ConfigError, UsageError
from figureground.stages import label
from figureground.stages.detecting import DETECTOR_FILE, digest_of
from figureground.stages.detector_training import load_weights
from figureground.stages.label import LabelConfig
from figureground.stages.labeller import Labeller
from figureground.stages.rounds import (
    FILLED_IN_TRAIN,
    FREE_IN_TRAIN,
    Bars,
    Chain,
    Made,
    Photos,
    RoundsConfig,
    RoundsResult,
    Standing,
    check_filled_in,
    finish,
    measure,
    opened,
    predict_step,
    run_round,
    settings_of_rounds,
    train_step,
)
from figureground.stages.train import TrainConfig, complete, settings_of
from figureground.storage.shards import fingerprint

# What may differ when a run goes on: where it computes, how many rounds, and what is measured beside it.
_FREE = (
    *("device", "truth", "truth_images", "self_train.rounds", "self_train.predict.threads"),
    *(f"{name}.{key}" for name in ("train", "self_train.train") for key in FREE_IN_TRAIN),
)


class LearnConfig(Config):
    """Everything that decides what `learn` learns."""

    images: tuple[str, ...] = Field(default=(), description="Files and folders of images.")
    label: LabelConfig = LabelConfig()
    train: TrainConfig = TrainConfig()
    self_train: RoundsConfig = RoundsConfig()
    truth: str | None = Field(
        default=None, description="COCO file of true objects that every step is measured by; none: nothing is measured."
    )
    truth_images: str | None = Field(
        default=None, description="Folder of its images, all of which are looked at; none: the images themselves."
    )
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N.")

    @field_validator("images")
    @classmethod
    def _absolute(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(os.path.abspath(os.path.expanduser(path)) for path in images)

    @field_validator("truth", "truth_images")
    @classmethod
    def _absolute_truth(cls, path: str | None) -> str | None:
        return os.path.abspath(os.path.expanduser(path)) if path else None

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> "LearnConfig":
        check_filled_in(self.label, "label", ("images", "device"))
        check_filled_in(self.train, "train", FILLED_IN_TRAIN)
        if self.truth_images is not None and self.truth is None:
            raise ValueError("truth_images is set without a truth: add --truth.")
        return self


def configure(
    images: Sequence[str] = (),
    assignments: Sequence[str] = (),
    *,
    recipe: str | None = None,
    method: str | None = None,
    backbone: str | None = None,
    rounds: int | None = None,
    **shorthands: Any,
) -> LearnConfig:
    """The configuration a command line asks for: the recipe, ``--set`` over it, and the shorthands over both.

    The rounds are trained as the first training is, but for what :func:`figureground.stages.rounds.settings_of_rounds`
    changes and what is set below ``self_train``.

    Args:
        images: Files and folders.
        assignments: ``KEY=VALUE``.
        recipe: Of the training; none: `cutler_cascade` on a GPU, else `small`.
        method: Of `label`.
        backbone: Of `label`.
        rounds: Of self-training.
        shorthands: Values of other top-level keys; ``None`` leaves a key alone.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
        UsageError: If there is no such recipe or detector.
    """
    asked = requested(assignments, shorthands, images)
    for branch in ("label", "train", "self_train"):
        if not isinstance(asked.get(branch, {}), dict):
            raise ConfigError(f"{branch} has keys of its own and is no value.", f"Write --set {branch}.KEY=VALUE.")
    named = {"method": method, "backbone": {"name": backbone} if backbone else None}
    labelling = merge(asked.pop("label", {}), {key: value for key, value in named.items() if value is not None})
    training = dict(asked.pop("train", {}))
    on_gpu = str(asked.get("device", "cpu")).startswith("cuda")
    chosen = recipe or training.get("recipe") or ("cutler_cascade" if on_gpu else "small")
    first = settings_of(str(chosen), training)
    repeated = merge(settings_of_rounds(first), asked.pop("self_train", {}))
    if rounds is not None:
        repeated["rounds"] = rounds
    tree = {"label": labelling, "train": first.model_dump(), "self_train": repeated}
    return build(LearnConfig, {**asked, **tree})


def run(config: LearnConfig, out: Path, bars: Bars | None = None) -> RoundsResult:
    """Find the objects of photographs, train a detector on them, and train it anew on what it finds itself.

    Its steps are runs of their own: ``label``, ``train``, and of each round ``round-N/predictions``,
    ``round-N/labels.json`` and ``round-N/train``. Can be killed at any time and called again: steps that are done are
    not done again.

    Args:
        config: What to do.
        out: The run's folder; made if it does not exist.
        bars: How it speaks of each step; none: not at all.

    Raises:
        UsageError: If there is nothing to do, a name does not exist, or not a single mask was found.
        ConfigError: If ``out`` holds a run with another configuration.
        RunError: If no image can be used, the losses are not finite, the folder cannot be written, or another process
            is writing it.

    Reference:
        Wang et al., CutLER, CVPR 2023, section 3; its parts say where they deviate.
    """
    start = time.perf_counter()
    photos = Photos(config.images, list_images(config.images, exclude=out).root, config.label.limit)
    _check(config, out)
    device, rounds = config.device, config.self_train
    with opened(out, config, _FREE, device, bars or Bars()) as chain:
        ruler = _Ruler(chain, config, str(photos.root))
        settings = config.label.replace(images=config.images, device=device)
        first = labels = _label_step(chain, "label", "Labelling", settings)
        if not labels.facts["instances"]:
            raise UsageError(
                f"No object was found in {labels.facts['images']} images: there is nothing to learn from.",
                "Try another --method or --backbone; `figureground compare` shows several side by side.",
            )
        ruler.labels(settings)
        detector = train_step(chain, "train", "Training", config.train, labels, photos.root, device, None)
        standings, counts = [Standing("train", "Training", detector)], []
        ruler.detector(standings[0])
        for number in range(1, rounds.rounds + 1):
            labels, detector = run_round(chain, rounds, number, photos, device, labels, detector)
            counts.append(labels.facts)
            standings.append(Standing(f"round-{number}/train", f"Round {number}", detector))
            ruler.detector(standings[-1])
        return finish(
            *(chain, first, photos.root, standings, counts, device, start),
            stage="learn",
            images=first.facts["images"],
            instances=first.facts["instances"],
            measured=ruler.measured,
        )


def _check(config: LearnConfig, out: Path) -> None:
    """Find out what can be wrong with names, weights and truth before a folder is made or an hour is spent."""
    if config.truth is not None:
        read_truth(Path(config.truth))
        list_images([config.truth_images] if config.truth_images else config.images)
    if not (out / "label" / "done.json").exists():
        Labeller(config.label.replace(device=config.device))
    if config.train.init is not None and not (out / "train" / DETECTOR_FILE).exists():
        load_weights(detectors.create(complete(config.train).detector), config.train.init)


def _label_step(chain: Chain, name: str, title: str, config: LabelConfig) -> Made:
    def work() -> dict[str, Any]:
        with chain.bars.images(title) as progress:
            result = label.run(config, chain.out / name, progress=progress)
        return {"images": result.images, "instances": result.instances, "failed": result.failed}

    return chain.step(name, [], annotations_name(config.format), work)


class _Ruler:
    """Measures the pseudo-labels and every detector on images with a truth, where there is one.

    Attributes:
        measured: By title, in per cent.
    """

    def __init__(self, chain: Chain, config: LearnConfig, root: str) -> None:
        self.chain, self.config = chain, config
        self.measured: dict[str, dict[str, float | None]] = {}
        self._images = config.truth_images or root
        # Other images are another measurement.
        self._folder = f"measured/{fingerprint([self._images])[:8]}"

    def labels(self, settings: LabelConfig) -> None:
        """Measure what the method finds."""
        if self.config.truth is not None:
            settings = settings.replace(images=(self._images,), limit=None)
            name = f"{self._folder}/label"
            self._measure("Labels", name, _label_step(self.chain, name, "Measuring the labels", settings))

    def detector(self, standing: Standing) -> None:
        """Measure a detector."""
        if self.config.truth is None:
            return
        # All that it finds, as many as it may: average precision asks for them.
        settings = self.config.self_train.predict.replace(
            detector=str(standing.detector.path),
            images=(self._images,),
            device=self.config.device,
            score_threshold=0.0,
            max_detections=None,
        )
        name = f"{self._folder}/{standing.name.removesuffix('/train')}"
        title = f"Measuring {standing.title.lower()}"
        self._measure(standing.title, name, predict_step(self.chain, name, title, settings, [standing.detector.digest]))

    def _measure(self, title: str, name: str, found: Made) -> None:
        truth = Path(str(self.config.truth))

        def work() -> dict[str, Any]:
            return measure(found.path.parent, truth)

        made = self.chain.step(name, [found.digest, digest_of(truth)], "evaluation.json", work, "measured")
        self.measured[title] = made.facts
