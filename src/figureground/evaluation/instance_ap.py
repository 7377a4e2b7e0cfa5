"""Class-agnostic average precision and recall of boxes and masks, by COCO's own evaluator."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from figureground.data.truth import Annotation, AnnotationSet
from figureground.evaluation.bootstrap import Estimate, estimate, resample

SIZES = ("", "_small", "_medium", "_large")
"""COCO's area ranges: all; below 32² px; between; above 96² px."""

# Elements that one block of resampled detections may have.
_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class _Matches:
    """The detections of one area range, surest first over all images, as COCO's evaluator matched them.

    Attributes:
        image: Position of each detection's image.
        rank: Position of each detection in its image, from 0.
        hit: Found an object that counts, at each IoU threshold.
        counts: Neither crowd, nor of another size, nor difficult: it is a hit or a false alarm.
        objects: How many objects that count each image has.
    """

    image: Int[np.ndarray, "D"]
    rank: Int[np.ndarray, "D"]
    hit: Bool[np.ndarray, "T D"]
    counts: Bool[np.ndarray, "T D"]
    objects: Int[np.ndarray, "I"]


@dataclass(frozen=True, slots=True, eq=False)
class InstanceEvaluation:
    """AP and AR of one file of predictions.

    Attributes:
        values: ``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``, ``ar1`` and so on for each number
            of detections, ``ar_small``, ``ar_medium``, ``ar_large``; in [0, 1], ``None`` where the truth has no such
            object. AP and the ARs by size count the largest number of detections.
        image_count: How many images.
    """

    values: dict[str, float | None]
    image_count: int
    _matches: tuple[_Matches, ...]
    _max_detections: tuple[int, ...]
    _recalls: Float[np.ndarray, "R"]

    def resampled(self, weights: Int[np.ndarray, "S I"]) -> dict[str, Float[np.ndarray, "S"]]:
        """The same measures as if image ``i`` were there ``weights[s, i]`` times; NaN where not defined.

        Exactly what COCO's evaluator gives for the resampled list of images, but that the copies of one image stand
        side by side where scores are equal.
        """
        results: dict[str, Float[np.ndarray, "S"]] = {}
        for size, matches in zip(SIZES, self._matches, strict=True):
            objects = weights @ matches.objects
            precision = _resampled_precision(matches, weights, objects, self._recalls)
            results[f"ap{size}"] = precision.mean(1)
            if not size:
                results |= {"ap50": precision[:, 0], "ap75": precision[:, 5]}
            for name, limit in _recall_names(size, self._max_detections):
                results[name] = _resampled_recall(matches, weights, objects, limit)
        return {name: results[name] for name in self.values}

    def estimates(self, generator: np.random.Generator, resamples: int = 1000) -> dict[str, Estimate]:
        """Each measure with its 95 % bootstrap interval over images; 0 resamples give none."""
        draws = self.resampled(resample(self.image_count, resamples, generator))
        return {name: estimate(value, draws[name]) for name, value in self.values.items()}


def evaluate_instances(
    truth: AnnotationSet,
    predictions: AnnotationSet,
    kind: Literal["box", "mask"],
    max_detections: Sequence[int] = (1, 10, 100),
    skip_difficult: bool = False,
) -> InstanceEvaluation:
    """AP and AR with every object, whatever its category, taken for the one category `object`.

    Detections are ordered by score, and of equal scores as COCO's evaluator does: by image id, then as in the file;
    those without a score by the share of the image they cover (:attr:`Annotation.rank`). AR depends on the order only
    in which of two detections takes an object, and in the cut at ``max_detections``.

    Args:
        truth: What is to be found. ``area`` decides the size of an object, for boxes too, as in COCO.
        predictions: What was found, matched to ``truth``.
        kind: What overlaps are measured of; ``mask`` needs one for every annotation.
        max_detections: Of an image; AP counts the largest. All that are asked for are counted (the LVIS evaluation of
            CutLER asks for 300 and counts 100).
        skip_difficult: Difficult objects need not be found, and finding one is no false alarm; a second detection of
            the same one is (so COCO ignores objects; PASCAL VOC forgives any number).

    Raises:
        ValueError: If a mask is missing.

    Reference:
        Lin et al., Microsoft COCO, ECCV 2014, through pycocotools, the reference. Deviates: the size of a detected mask
        is that of the mask (``COCO.loadRes`` takes the box's where there is one), and ids may be 0, which pycocotools
        would take for unmatched. Mapping to one category gives what ``useCats = 0`` gives but for the order in
        which objects are tried, there category by category: it decides which of two crowd regions, or of two objects
        of exactly equal overlap, takes a detection; and without the mapping a detection whose category the truth does
        not list is not seen at all.
    """
    limits = sorted(set(max_detections))
    objects = [_entry(entry, kind, number) for number, entry in enumerate(truth.all(), start=1)]
    for entry, annotation in zip(objects, truth.all(), strict=True):
        entry["area"] = annotation.area
        entry["iscrowd"] = int(annotation.crowd)
        if skip_difficult and annotation.difficult:
            # pycocotools overwrites `ignore`; outside every area range an object is ignored without being a crowd.
            entry["area"] = -1.0
    found = predictions.within(truth.images).all()
    detections = [{**_entry(entry, kind, number), "score": entry.rank} for number, entry in enumerate(found, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        name = "bbox" if kind == "box" else "segm"
        evaluation = COCOeval(_coco(truth, objects), _coco(truth, detections), name)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    image_count = len(truth.images)
    per_image: list[Any] = list(evaluation.evalImgs)
    matches = tuple(_gather(per_image[first : first + image_count]) for first in range(0, len(per_image), image_count))
    recalls: Any = evaluation.params.recThrs
    return InstanceEvaluation(_summarise(evaluation.eval, limits), image_count, matches, tuple(limits), recalls)


def _recall_names(size: str, max_detections: Sequence[int]) -> list[tuple[str, int]]:
    if size:
        return [(f"ar{size}", max_detections[-1])]
    return [(f"ar{limit}", limit) for limit in max_detections]


def _entry(annotation: Annotation, kind: str, number: int) -> dict[str, Any]:
    common: dict[str, Any] = {"id": number, "image_id": annotation.image.id, "category_id": 1, "iscrowd": 0}
    common["bbox"] = list(annotation.bbox)
    if kind == "box":
        return {**common, "area": annotation.bbox[2] * annotation.bbox[3]}
    if annotation.mask is None:
        raise ValueError(f"Annotation {annotation.id} has no mask.")
    mask: Any = {"size": annotation.mask["size"], "counts": annotation.mask["counts"].encode("ascii")}
    return {**common, "area": float(coco_mask.area(mask)), "segmentation": mask}


def _coco(truth: AnnotationSet, entries: list[dict[str, Any]]) -> COCO:
    images = [{"id": image.id, "height": image.height, "width": image.width} for image in truth.images]
    content: Any = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "object"}]}
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _summarise(accumulated: Any, limits: Sequence[int]) -> dict[str, float | None]:
    """COCO's summary; pycocotools' own can only print the default numbers of detections."""
    # Precision: threshold, recall, category, size, limit. Recall: threshold, category, size, limit.
    precision, recall = accumulated["precision"][:, :, 0, :, -1], accumulated["recall"][:, 0]
    values = {"ap": precision[:, :, 0], "ap50": precision[0, :, 0], "ap75": precision[5, :, 0]}
    values |= {f"ap{size}": precision[:, :, index] for index, size in enumerate(SIZES) if size}
    values |= {f"ar{limit}": recall[:, 0, index] for index, limit in enumerate(limits)}
    values |= {f"ar{size}": recall[:, index, -1] for index, size in enumerate(SIZES) if size}
    # -1 stands where the truth has no such object.
    return {name: float(part.mean()) if (part > -1).all() else None for name, part in values.items()}


def _gather(per_image: list[Any]) -> _Matches:
    """Put COCO's matches of one area range into one order."""
    objects = np.array([0 if entry is None else np.sum(entry["gtIgnore"] == 0) for entry in per_image], dtype=np.int64)
    seen = [(index, entry) for index, entry in enumerate(per_image) if entry is not None and entry["dtScores"]]
    if not seen:
        none = np.zeros(0, dtype=np.int64)
        return _Matches(none, none, np.zeros((10, 0), dtype=bool), np.zeros((10, 0), dtype=bool), objects)
    sizes = [len(entry["dtScores"]) for _, entry in seen]
    order = np.argsort(-np.concatenate([entry["dtScores"] for _, entry in seen]), kind="stable")
    counts = ~np.concatenate([entry["dtIgnore"] for _, entry in seen], axis=1).astype(bool)[:, order]
    matched = np.concatenate([entry["dtMatches"] for _, entry in seen], axis=1)[:, order] > 0
    return _Matches(
        image=np.repeat([index for index, _ in seen], sizes)[order],
        rank=np.concatenate([np.arange(size) for size in sizes])[order],
        hit=matched & counts,
        counts=counts,
        objects=objects,
    )


def _resampled_recall(
    matches: _Matches, weights: Int[np.ndarray, "S I"], objects: Int[np.ndarray, "S"], limit: int
) -> Float[np.ndarray, "S"]:
    """Mean over the thresholds of the share of objects found among the first ``limit`` detections of each image."""
    hits = matches.hit[:, matches.rank < limit].mean(0)
    per_image = np.bincount(matches.image[matches.rank < limit], weights=hits, minlength=weights.shape[1])
    return _ratio(weights @ per_image, objects)


def _resampled_precision(
    matches: _Matches,
    weights: Int[np.ndarray, "S I"],
    objects: Int[np.ndarray, "S"],
    recalls: Float[np.ndarray, "R"],
) -> Float[np.ndarray, "S T"]:
    """Interpolated precision averaged over ``recalls``, at each IoU threshold.

    A detection of an image that was drawn ``w`` times counts ``w`` times. Precision is only read off at hits: between
    two of them it falls, and the interpolation takes what comes after.
    """
    result = np.full((len(weights), len(matches.hit)), np.nan)
    block = max(1, _BLOCK // max(1, len(matches.image)))
    for first in range(0, len(weights), block):
        rows = slice(first, first + block)
        drawn = weights[rows][:, matches.image]
        # Most detections count at every threshold or at none: those are summed up once.
        always = np.logical_and.reduce(matches.counts, axis=0)
        shared = _running_sum(drawn, always)
        for index, (hit, counts) in enumerate(zip(matches.hit, matches.counts, strict=True)):
            hits = _running_sum(drawn, hit)[:, 1:]
            # How many detections that count there are up to each hit.
            rest = counts & ~always
            seen = shared[:, np.cumsum(always)[hit]] + _running_sum(drawn, rest)[:, np.cumsum(rest)[hit]]
            recall = _ratio(hits, objects[rows, None])
            precision = _ratio(hits, seen)
            # The highest of the recall levels that each hit reaches; then the best from each level on.
            level = np.searchsorted(recalls, recall, side="right") - 1
            best = np.zeros((len(drawn), len(recalls)))
            np.maximum.at(best, (np.arange(len(drawn))[:, None], level), np.nan_to_num(precision))
            best = np.maximum.accumulate(best[:, ::-1], axis=1)
            result[rows, index] = best.mean(1)
    result[objects == 0] = np.nan
    return result


def _running_sum(drawn: Int[np.ndarray, "S D"], chosen: Bool[np.ndarray, "D"]) -> Int[np.ndarray, "S n"]:
    """Column ``n`` is the sum of the draws of the first ``n`` chosen detections; it starts at 0."""
    total = np.zeros((len(drawn), 1 + np.count_nonzero(chosen)), dtype=drawn.dtype)
    np.cumsum(drawn[:, chosen], axis=1, out=total[:, 1:])
    return total


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """A quotient; NaN where there is nothing to divide by."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
