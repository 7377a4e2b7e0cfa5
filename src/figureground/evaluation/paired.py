"""Several predictions of the same images: each measure with its interval, and the differences, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask

from figureground.data.truth import Annotation, AnnotationSet
from figureground.evaluation.bootstrap import Estimate, estimate, resample
from figureground.evaluation.corloc import corloc, surest
from figureground.evaluation.instance_ap import evaluate_instances

INSTANCE_MEASURES = ("ap", "ap50", "ar10", "ar100")


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """A measure with the values it takes on resampled images.

    Attributes:
        value: In [0, 1]; ``None`` where the measure is not defined.
        draws: Of as many resamples; NaN where not defined.
    """

    value: float | None
    draws: Float[np.ndarray, "S"]

    def estimate(self) -> Estimate:
        """The measure with its 95 % interval."""
        return estimate(self.value, self.draws)

    def less(self, other: "Sampled") -> Estimate:
        """How much higher this is than another that was sampled on the same draws: 0 outside the interval tells."""
        if self.value is None or other.value is None:
            return Estimate(None)
        return estimate(self.value - other.value, self.draws - other.draws)


def measure(
    truth: AnnotationSet, predictions: AnnotationSet, with_masks: bool, seed: int = 0, resamples: int = 1000
) -> dict[str, Sampled]:
    """``corloc``, ``box_ap`` and so on for :data:`INSTANCE_MEASURES`; with masks ``mask_ap`` and so on, and ``iou``.

    Args:
        truth: What is to be found.
        predictions: What was found, matched to ``truth``.
        with_masks: Whether all of both have masks.
        seed: Decides the draws; the same for predictions that are to be compared.
        resamples: Of the images; 0 gives no intervals.
    """

    def mean(values: Float[np.ndarray, "I"]) -> Sampled:
        if not len(values):
            return Sampled(None, np.zeros(0))
        draws = resample(len(values), resamples, np.random.default_rng(seed)) @ values / len(values)
        return Sampled(float(values.mean()), draws)

    measures = {"corloc": mean(corloc(truth, predictions))}
    weights = resample(len(truth.images), resamples, np.random.default_rng(seed))
    for kind in ("box", "mask") if with_masks else ("box",):
        evaluation = evaluate_instances(truth, predictions, kind, (1, 10, 100))
        draws = evaluation.resampled(weights)
        for name in INSTANCE_MEASURES:
            measures[f"{kind}_{name}"] = Sampled(evaluation.values[name], draws[name])
    if with_masks:
        measures["iou"] = mean(foreground_iou(truth, predictions))
    return measures


def foreground_iou(truth: AnnotationSet, predictions: AnnotationSet) -> Float[np.ndarray, "I"]:
    """IoU of the surest mask with the union of all true ones, for each image that has any; 0 where nothing was found.

    The ``iou`` of :func:`figureground.evaluation.saliency.evaluate_saliency` in its mode ``surest``, from the runs
    alone.
    """
    ious = []
    for image in truth.images:
        objects = [_runs(annotation) for annotation in truth.of(image)]
        if any(coco_mask.area(runs) for runs in objects):
            found = predictions.of(image)
            ious.append(_iou(_runs(surest(found)), coco_mask.merge(objects)) if found else 0.0)
    return np.array(ious, dtype=np.float64)


def _iou(left: Any, right: Any) -> float:
    return float(np.asarray(coco_mask.iou([left], [right], [0]))[0, 0])


def _runs(annotation: Annotation) -> Any:
    if annotation.mask is None:
        raise ValueError(f"Annotation {annotation.id} has no mask.")
    return {"size": annotation.mask["size"], "counts": annotation.mask["counts"].encode("ascii")}


def as_per_cent(measures: dict[str, Sampled], first: dict[str, Sampled] | None) -> dict[str, dict[str, Any]]:
    """Each measure with its interval, and its difference to the first of the comparison, in per cent.

    Args:
        measures: Of one of the predictions.
        first: Of the one that it is held against; ``None`` for that one itself.

    Returns:
        By name: ``value``, ``low``, ``high``, and, where there is something to subtract, ``difference``,
        ``difference_low``, ``difference_high``.
    """
    rows = {}
    for name, sampled in measures.items():
        row = _rounded(sampled.estimate(), ("value", "low", "high"))
        if first is not None:
            row |= _rounded(sampled.less(first[name]), ("difference", "difference_low", "difference_high"))
        rows[name] = row
    return rows


def _rounded(measure: Estimate, keys: Sequence[str]) -> dict[str, float | None]:
    scaled = measure.scaled(100.0)
    values = (scaled.value, scaled.low, scaled.high)
    return {key: None if value is None else round(value, 6) for key, value in zip(keys, values, strict=True)}
