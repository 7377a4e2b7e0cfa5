"""`figureground evaluate`: predictions and truth to numbers with intervals."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from figureground.config import Config, build, parse_assignments
from figureground.data.annotation_file import find_annotations
from figureground.data.truth import Annotation, AnnotationSet, read_predictions, read_truth
from figureground.errors import UsageError
from figureground.evaluation.bootstrap import Estimate, bootstrap_mean
from figureground.evaluation.corloc import corloc
from figureground.evaluation.instance_ap import evaluate_instances
from figureground.evaluation.saliency import Mode, evaluate_saliency
from figureground.stages.environment import package_versions
from figureground.storage.atomic import make_folder, write_json


class EvaluateConfig(Config):
    """Everything that decides what `evaluate` measures."""

    predictions: str = Field(default="", description="A run's folder, or anyone's COCO file or list of results.")
    truth: str = Field(default="", description="COCO file of the ground truth; all its categories count as one.")
    max_detections: tuple[int, ...] = Field(
        default=(1, 10, 100),
        min_length=1,
        description="Detections an image that AR counts; AP counts the most (COCO: 1, 10, 100; LVIS: 300).",
    )
    skip_difficult: bool = Field(
        default=False, description="Difficult objects need not be found (LOST's `--no_hard`; published figures: false)."
    )
    only_listed: bool = Field(
        default=False,
        description="Leave out images that the predictions do not list; else nothing was found there, and they count.",
    )
    saliency_map: Mode = Field(
        default="surest", description="Foreground of an image: its `surest` mask, or the `union` weighted by score."
    )
    resamples: int = Field(default=1000, ge=0, le=100_000, description="Of the bootstrap over images; 0: no intervals.")
    seed: int = Field(default=0, ge=0, description="Of the bootstrap.")

    @field_validator("predictions", "truth")
    @classmethod
    def _absolute(cls, path: str) -> str:
        return os.path.abspath(os.path.expanduser(path)) if path else path

    @field_validator("max_detections")
    @classmethod
    def _ascending(cls, limits: tuple[int, ...]) -> tuple[int, ...]:
        if min(limits) < 1:
            raise ValueError(f"Configuration key 'max_detections': numbers are positive, got {limits}.")
        return tuple(sorted(set(limits)))


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """What was measured.

    Attributes:
        path: ``evaluation.json``; ``None`` where there was no folder to write it to.
        counts: ``images`` measured; ``detections`` and ``objects`` in them; of the objects, ``difficult``; ``crowd``
            regions, which are not among the objects; ``images_not_listed`` by the predictions; ``images_without_truth``
            that were passed over.
        measures: In per cent, by group (``box``, ``mask``, ``corloc``, ``saliency``) and name.
        notes: What a reader of the numbers has to know.
    """

    path: Path | None
    counts: dict[str, int]
    measures: dict[str, dict[str, Estimate]]
    notes: tuple[str, ...]


def configure(predictions: str | Path, truth: str | Path, assignments: Sequence[str] = ()) -> EvaluateConfig:
    """The configuration a command line asks for.

    Raises:
        ConfigError: If a key does not exist or a value is out of range.
    """
    tree = parse_assignments(assignments)
    return build(EvaluateConfig, {**tree, "predictions": str(predictions), "truth": str(truth)})


def run(config: EvaluateConfig, out: Path | None = None) -> EvaluateResult:
    """Measure predictions against the truth and write ``evaluation.json``.

    Boxes are always measured, masks and foreground where truth and predictions have masks. Nothing is written unless
    all is measured.

    Args:
        config: What to do.
        out: Folder for ``evaluation.json``; none: the run's own; for predictions that are a file nothing is written.

    Raises:
        UsageError: If a file cannot be read or is wrong (file and field are named), the two do not match, or the truth
            has no object.
        RunError: If the result cannot be written.
    """
    truth = read_truth(Path(config.truth))
    predictions = read_predictions(_annotations_of(Path(config.predictions)), truth)
    not_listed = len(truth.images) - len(predictions.images)
    if config.only_listed:
        truth = truth.within(predictions.images)
    counts = _count(truth, predictions, not_listed)
    if not any(_is_object(annotation, config) for annotation in truth.all()):
        raise UsageError(f"{truth.path} has no object in the {len(truth.images)} images: there is nothing to find.")
    with_masks, notes = _describe(config, truth, predictions, counts)
    measures = {
        group: {name: measure.scaled(100.0) for name, measure in part.items()}
        for group, part in _measure(config, truth, predictions, with_masks).items()
    }
    folder = out or (Path(config.predictions) if Path(config.predictions).is_dir() else None)
    result = EvaluateResult(folder and folder / "evaluation.json", counts, measures, notes)
    if folder is not None:
        make_folder(folder)
        write_json(folder / "evaluation.json", _to_json(config, result))
    return result


def _annotations_of(predictions: Path) -> Path:
    if not predictions.is_dir():
        return predictions
    file = find_annotations(predictions)
    if file is None:
        raise UsageError(f"{predictions} has no annotations.json.", "Name a finished run's folder, or a COCO file.")
    return file


def _is_object(annotation: Annotation, config: EvaluateConfig) -> bool:
    return not (annotation.crowd or (config.skip_difficult and annotation.difficult))


def _count(truth: AnnotationSet, predictions: AnnotationSet, not_listed: int) -> dict[str, int]:
    objects = [annotation for annotation in truth.all() if not annotation.crowd]
    return {
        "images": len(truth.images),
        "detections": len(predictions.all()),
        "objects": len(objects),
        "difficult": sum(annotation.difficult for annotation in objects),
        "crowd": len(truth.all()) - len(objects),
        "images_not_listed": not_listed,
        "images_without_truth": predictions.passed_over,
    }


def _describe(
    config: EvaluateConfig, truth: AnnotationSet, predictions: AnnotationSet, counts: dict[str, int]
) -> tuple[bool, tuple[str, ...]]:
    """Whether masks can be measured, and what has to be said."""
    notes = []
    bare = [sum(annotation.mask is None for annotation in part.all()) for part in (truth, predictions)]
    for missing, total, what in zip(bare, (len(truth.all()), counts["detections"]), ("true", "predicted"), strict=True):
        if missing:
            notes.append(f"{missing} of {total} {what} objects have no mask: only boxes are measured.")
            break
    if any(annotation.score is None for annotation in predictions.all()):
        notes.append(
            "The detections have no score: the larger share of the image one covers, the surer it is taken to be."
        )
    if counts["difficult"]:
        treated = "need not be found" if config.skip_difficult else "count as any other (skip_difficult=false)"
        notes.append(f"{counts['difficult']} difficult objects {treated}.")
    if counts["images_not_listed"]:
        treated = "are left out" if config.only_listed else "count: nothing was found there (only_listed=false)"
        notes.append(f"{counts['images_not_listed']} images that the predictions do not list {treated}.")
    if counts["images_without_truth"]:
        notes.append(f"{counts['images_without_truth']} images of the predictions have no truth and were passed over.")
    return not any(bare), tuple(notes)


def _measure(
    config: EvaluateConfig, truth: AnnotationSet, predictions: AnnotationSet, with_masks: bool
) -> dict[str, dict[str, Estimate]]:
    def generator() -> np.random.Generator:
        # Anew for each measure, so that all resample the same images.
        return np.random.default_rng(config.seed)

    measures: dict[str, dict[str, Estimate]] = {}
    for kind in ("box", "mask") if with_masks else ("box",):
        evaluation = evaluate_instances(truth, predictions, kind, config.max_detections, config.skip_difficult)
        measures[kind] = evaluation.estimates(generator(), config.resamples)
    hits = corloc(truth, predictions, config.skip_difficult)
    measures["corloc"] = {"corloc": bootstrap_mean(hits, generator(), config.resamples)}
    if with_masks:
        measures["saliency"] = evaluate_saliency(truth, predictions, generator(), config.saliency_map, config.resamples)
    return measures


def _to_json(config: EvaluateConfig, result: EvaluateResult) -> dict[str, Any]:
    return {
        "stage": "evaluate",
        "unit": "per cent; intervals are 95 % bootstrap over images",
        "measures": {
            group: {name: _rounded(measure) for name, measure in part.items()}
            for group, part in result.measures.items()
        },
        "counts": result.counts,
        "notes": list(result.notes),
        "config": config.model_dump(mode="json"),
        "versions": {name: package_versions()[name] for name in ("figureground", "pycocotools", "numpy")},
    }


def _rounded(measure: Estimate) -> dict[str, float | None]:
    return {key: None if value is None else round(value, 6) for key, value in asdict(measure).items()}
