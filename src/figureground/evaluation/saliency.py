"""How well a soft map tells figure from ground: IoU, accuracy, max-F, S-measure, MAE."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from figureground.data.truth import AnnotatedImage, Annotation, AnnotationSet
from figureground.evaluation.bootstrap import Estimate, bootstrap_mean, estimate, resample
from figureground.evaluation.corloc import surest
from figureground.ops.rle import decode

Mode = Literal["surest", "union"]

BETA_SQUARED = 0.3
# The first lets every pixel pass, the last those that are 1.
_THRESHOLDS = np.linspace(0, 1 - 1e-10, 255)


@dataclass(frozen=True, slots=True, eq=False)
class MapScore:
    """The measures of one map.

    Attributes:
        iou: Intersection over union of the pixels above 0.5 with the true ones.
        accuracy: Share of pixels on the right side of 0.5.
        mae: Mean absolute error of the soft map; lower is better.
        s_measure: Structural similarity.
        f_curve: F at each of 255 thresholds.
    """

    iou: float
    accuracy: float
    mae: float
    s_measure: float
    f_curve: Float[np.ndarray, "255"]


def evaluate_saliency(
    truth: AnnotationSet,
    predictions: AnnotationSet,
    generator: np.random.Generator,
    mode: Mode = "surest",
    resamples: int = 1000,
) -> dict[str, Estimate]:
    """``iou``, ``accuracy``, ``max_f``, ``s_measure`` and ``mae`` (lower is better), averaged over images, in [0, 1].

    The true foreground of an image is the union of all its masks, crowd and difficult ones included; an image without
    any is left out. An image without a prediction gets a map of zeros.

    Args:
        truth: Annotations with masks.
        predictions: The same, matched to ``truth``.
        generator: Decides the draws of the bootstrap.
        mode: How the instances of an image become a map; see :func:`saliency_map`.
        resamples: 0 gives no intervals.

    Reference:
        Wang et al., TokenCut, CVPR 2022: max-F is the maximum of the F curve averaged over images. FOUND and SelfMask
        average the maxima of single images and square 0.3 once more: their figures are higher and another measure.
    """
    scores = []
    for image in truth.images:
        foreground = saliency_map(truth.of(image), image, "union") > 0
        if foreground.any():
            scores.append(score_map(saliency_map(predictions.of(image), image, mode), foreground))
    names = ("iou", "accuracy", "s_measure", "mae")
    results = {
        name: bootstrap_mean(np.array([getattr(score, name) for score in scores]), generator, resamples)
        for name in names
    }
    results["max_f"] = Estimate(None)
    if scores:
        curves = np.stack([score.f_curve for score in scores])
        draws = resample(len(curves), resamples, generator) @ curves / len(curves)
        results["max_f"] = estimate(float(curves.mean(0).max()), draws.max(1))
    return {name: results[name] for name in ("iou", "accuracy", "max_f", "s_measure", "mae")}


def saliency_map(annotations: tuple[Annotation, ...], image: AnnotatedImage, mode: Mode) -> Float[np.ndarray, "H W"]:
    """One value in [0, 1] per pixel from the instances of an image.

    Args:
        annotations: With masks; none gives zeros.
        image: Where they are.
        mode: ``surest``: 1 on the mask of the highest score (the first of equals), what one-object methods are measured
            by. ``union``: on each pixel the highest score of the masks that cover it, as a share of the highest score
            of the image, so that methods need not agree on what a score of 0.5 means; 1 for masks without a score.
    """
    height, width = image.height, image.width
    canvas = np.zeros((height, width))
    if not annotations:
        return canvas
    chosen = (surest(annotations),) if mode == "surest" else annotations
    weights = np.array([1.0 if annotation.score is None else max(annotation.score, 0.0) for annotation in chosen])
    weights = weights / weights.max() if weights.max() > 0 else np.ones_like(weights)
    for annotation, weight in zip(chosen, weights, strict=True):
        if annotation.mask is None:
            raise ValueError(f"Annotation {annotation.id} has no mask.")
        [mask] = decode([annotation.mask]).numpy()
        np.maximum(canvas, weight, out=canvas, where=mask)
    return canvas


def score_map(saliency: Float[np.ndarray, "H W"], foreground: Bool[np.ndarray, "H W"]) -> MapScore:
    """All measures of one map in [0, 1] against its true foreground."""
    above = saliency > 0.5
    union = int((above | foreground).sum())
    return MapScore(
        iou=int((above & foreground).sum()) / union if union else 1.0,
        accuracy=float((above == foreground).mean()),
        mae=float(np.abs(saliency - foreground).mean()),
        s_measure=s_measure(saliency, foreground),
        f_curve=f_curve(saliency, foreground),
    )


def f_curve(saliency: Float[np.ndarray, "H W"], foreground: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "255"]:
    """F with beta² = 0.3 at 255 thresholds evenly from 0 to 1; a pixel passes one that it reaches.

    Every pixel passes the first: an empty map gets the F of taking the whole image for foreground.

    Reference:
        Achanta et al., CVPR 2009 (F); Wang et al., TokenCut, CVPR 2022 (thresholds).
    """
    highest = np.searchsorted(_THRESHOLDS, saliency.ravel(), side="right") - 1
    inside = foreground.ravel()
    passed = np.bincount(highest, minlength=255)[::-1].cumsum()[::-1]
    hits = np.bincount(highest[inside], minlength=255)[::-1].cumsum()[::-1]
    # beta² / recall + 1 / precision, all over one denominator.
    denominator = BETA_SQUARED * inside.sum() + passed
    return (1 + BETA_SQUARED) * hits / np.maximum(denominator, 1e-20)


def s_measure(saliency: Float[np.ndarray, "H W"], foreground: Bool[np.ndarray, "H W"], alpha: float = 0.5) -> float:
    """Structural similarity of a soft map and a foreground, in [0, 1].

    Reference:
        Fan et al., Structure-measure, ICCV 2017, alpha 0.5, lambda 0.5; without a foreground (a background) it is one
        minus the mean (the mean) of the map. Deviates: the deviation of a single pixel, which n - 1 leaves undefined,
        is 0.
    """
    share = float(foreground.mean())
    if share in (0.0, 1.0):
        return float(saliency.mean() if share else 1 - saliency.mean())
    objects = share * _object_score(saliency[foreground]) + (1 - share) * _object_score(1 - saliency[~foreground])
    return max(0.0, alpha * objects + (1 - alpha) * _region_score(saliency, foreground))


def _object_score(values: Float[np.ndarray, "P"]) -> float:
    """How bright and even a map is where it should be 1."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + spread)


def _region_score(saliency: Float[np.ndarray, "H W"], foreground: Bool[np.ndarray, "H W"]) -> float:
    """Similarity of the four blocks around the centroid of the foreground, weighted by their sizes."""
    rows, columns = np.nonzero(foreground)
    # The row and the column of the centroid belong to the blocks above and to the left.
    y, x = int(rows.mean() + 1.5), int(columns.mean() + 1.5)
    total = 0.0
    for block in (np.s_[:y, :x], np.s_[:y, x:], np.s_[y:, :x], np.s_[y:, x:]):
        size = saliency[block].size
        if size:
            total += (
                size / saliency.size * _similarity(saliency[block].ravel(), foreground[block].ravel().astype(float))
            )
    return total


def _similarity(left: Float[np.ndarray, "P"], right: Float[np.ndarray, "P"]) -> float:
    """Luminance, contrast and structure in one (SSIM without its constants)."""
    means = float(left.mean()), float(right.mean())
    free = max(len(left) - 1, 1)
    deviations = left - means[0], right - means[1]
    variances = float(deviations[0] @ deviations[0]) / free + float(deviations[1] @ deviations[1]) / free
    covariance = float(deviations[0] @ deviations[1]) / free
    above = 4 * means[0] * means[1] * covariance
    below = (means[0] ** 2 + means[1] ** 2) * variances
    if above != 0:
        return above / (below + 1e-20)
    # Two even blocks are alike; the mean of equal values is not always exactly their value.
    return 1.0 if below < 1e-12 else 0.0
