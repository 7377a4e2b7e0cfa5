"""Self-training: what a detector found takes its place among the pseudo-labels it learned from."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask
from pydantic import Field

from figureground.config import Config
from figureground.data.categories import read_categories
from figureground.data.coco import CATEGORY, ImageAnnotations, write_coco
from figureground.data.label_file import LabelFile
from figureground.errors import UsageError

Entry = dict[str, Any]
"""An annotation with ``segmentation`` (compressed runs), ``score`` (``None``: none) and ``category_id``."""


class MergeConfig(Config):
    """Which predictions become pseudo-labels, and which older ones they replace; the published constants."""

    min_score: float = Field(
        default=0.7, ge=0, le=1, description="Predictions below are not used (CutLER: 0.7 in round 1, 0.65 in round 2)."
    )
    max_overlap: float = Field(
        default=0.5, gt=0, le=1, description="IoU with a prediction from which an older mask is replaced (CutLER: 0.5)."
    )
    nms: float | None = Field(
        default=0.5,
        gt=0,
        le=1,
        description="IoU with a surer prediction from which a prediction is not used; none: all are (CutLER: none).",
    )
    keep_older: bool = Field(
        default=True, description="Older masks that no prediction overlaps stay (CutLER: yes; FreeSOLO: no)."
    )
    max_width: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Predictions at least so wide, as a share of the image, are not used; none: all are (CutLER: none; "
        "FreeSOLO: 0.95).",
    )


@dataclass(frozen=True, slots=True)
class MergeCounts:
    """What became of the masks: ``kept + replaced`` of the older, the other four kinds of the predicted ones.

    Attributes:
        kept: Older masks that stay.
        replaced: Older masks that a prediction overlaps, or all of them.
        added: Predictions that are pseudo-labels now.
        unsure: Predictions below the score.
        repeated: Predictions that a surer one overlaps.
        wide: Predictions of the width of the image.
        empty: Masks of either kind without a pixel; they are in none of the other counts.
        images: How many there are now.
        new_images: Those of them that had no entry before.
    """

    kept: int = 0
    replaced: int = 0
    added: int = 0
    unsure: int = 0
    repeated: int = 0
    wide: int = 0
    empty: int = 0
    images: int = 0
    new_images: int = 0

    def __add__(self, other: "MergeCounts") -> "MergeCounts":
        return MergeCounts(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))


def merge(
    previous: Sequence[Entry], predictions: Sequence[Entry], config: MergeConfig
) -> tuple[list[Entry], MergeCounts]:
    """The pseudo-labels of one image for the next round.

    Predictions that are sure enough and that no surer one overlaps are taken, surest first; of the older masks those
    stay that overlap none of them. Without such a prediction all of them stay.
    Or none stays at all.

    Args:
        previous: The pseudo-labels that were learned from.
        predictions: What the detector found; each with a score.
        config: How sure, and what overlap is.

    Returns:
        Annotations for a COCO file: the older ones in their order, then the new ones. Box and area are those of the
        mask; an older mask without a score gets 1. And what became of all masks.

    Raises:
        UsageError: If a prediction has no score or the masks are not all of one size.

    Reference:
        Wang et al., CutLER, CVPR 2023, section 3.4, and its released script. Deviates: predictions that overlap each
        other do not all become labels, and masks of different sizes are an error (released: the predictions of such an
        image are dropped silently). Without older masks: Wang et al., FreeSOLO, CVPR 2022, section 3.4; the width of
        its released script is by mistake not that of the box.
    """
    _check(previous, predictions)
    older = [entry for entry in previous if coco_mask.area(entry["segmentation"])]
    likely = [entry for entry in predictions if entry["score"] >= config.min_score]
    there = [entry for entry in likely if coco_mask.area(entry["segmentation"])]
    sure = [entry for entry in there if not _is_wide(entry, config.max_width)]
    # Stable: of equal scores the earlier one is the surer.
    sure.sort(key=lambda entry: entry["score"], reverse=True)
    taken = sure if config.nms is None else _suppressed(sure, config.nms)
    overlaps = _iou(older, taken) >= config.max_overlap
    kept = [entry for entry, gone in zip(older, overlaps, strict=True) if config.keep_older and not gone.any()]
    counts = MergeCounts(
        kept=len(kept),
        replaced=len(older) - len(kept),
        added=len(taken),
        unsure=len(predictions) - len(likely),
        repeated=len(sure) - len(taken),
        wide=len(there) - len(sure),
        empty=len(previous) - len(older) + len(likely) - len(there),
    )
    return [_annotation(entry) for entry in (*kept, *taken)], counts


def merge_files(previous: Path, predictions: Path, out: Path, config: MergeConfig) -> MergeCounts:
    """Merge two COCO files image by image and write a third one.

    Images are the same where their ``file_name`` is. Those of one file only come along: without predictions an image
    keeps its masks, and one that only has predictions is added at the end.

    Args:
        previous: The pseudo-labels that were learned from.
        predictions: What the detector found; each with a score. An image without any may be missing.
        out: Where to; may be ``previous``.
        config: See :class:`MergeConfig`.

    Returns:
        What became of all masks.

    Raises:
        UsageError: If a file or one of its entries is broken, a prediction has no score, an image has two sizes or is
            listed twice, or the files have no image in common; it names file and image.
        RunError: If the disk is full or the folder cannot be written.
    """
    older, found = LabelFile(previous), LabelFile(predictions)
    places, new_places = _places(older), _places(found)
    if places and new_places and not places.keys() & new_places.keys():
        raise UsageError(
            f"{previous} and {predictions} are about other images: they have no `file_name` in common "
            f"(as {next(iter(places))!r} and {next(iter(new_places))!r}).",
            "Predict on the folder that the pseudo-labels were made of.",
        )
    counts = MergeCounts()

    def images() -> Iterator[ImageAnnotations]:
        nonlocal counts
        # The writer goes through them twice: once for the images and once for what is in them.
        counts = MergeCounts()
        for name in (*places, *(name for name in new_places if name not in places)):
            before = older[places[name]] if name in places else None
            after = found[new_places[name]] if name in new_places else None
            merged, its_counts = _merge_image(before, after, config, f"{predictions}: image {name!r}")
            counts += its_counts
            yield merged

    # Read before `out`, which may be one of them, is written.
    categories = read_categories(previous) | read_categories(predictions)
    rows = [{"id": number, "name": name} for number, name in sorted(categories.items())]
    write_coco(out, images, f"figureground, {previous.name} merged with {predictions.name}", rows or (CATEGORY,))
    return counts


def _merge_image(
    before: ImageAnnotations | None, after: ImageAnnotations | None, config: MergeConfig, where: str
) -> tuple[ImageAnnotations, MergeCounts]:
    image = before or after
    assert image is not None
    if before and after and (before["height"], before["width"]) != (after["height"], after["width"]):
        raise UsageError(
            f"{where} has {after['height']}x{after['width']} px, but its pseudo-labels have "
            f"{before['height']}x{before['width']} (height x width).",
            "Predict on the images that the pseudo-labels were made of.",
        )
    try:
        annotations, counts = merge(
            before["annotations"] if before else (), after["annotations"] if after else (), config
        )
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.remedy) from None
    merged = ImageAnnotations(
        file_name=image["file_name"], height=image["height"], width=image["width"], annotations=annotations
    )
    return merged, counts + MergeCounts(images=1, new_images=int(before is None))


def _places(file: LabelFile) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, image in enumerate(file):
        if image["file_name"] in places:
            raise UsageError(f"{file.path}: the `file_name` {image['file_name']!r} is given twice.")
        places[image["file_name"]] = place
    return places


def _is_wide(entry: Entry, limit: float | None) -> bool:
    mask = entry["segmentation"]
    return limit is not None and bool(coco_mask.toBbox(mask)[2] >= limit * mask["size"][1])


def _check(previous: Sequence[Entry], predictions: Sequence[Entry]) -> None:
    unscored = sum(entry["score"] is None for entry in predictions)
    if unscored:
        raise UsageError(f"`score` is missing for {unscored} of {len(predictions)} predictions.")
    sizes = {tuple(entry["segmentation"]["size"]) for entry in (*previous, *predictions)}
    if len(sizes) > 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise UsageError(
            f"The pseudo-labels and predictions of one image have several sizes (height x width): {listed}.",
            "Predict on the images that the pseudo-labels were made of.",
        )


def _suppressed(ranked: Sequence[Entry], max_overlap: float) -> list[Entry]:
    """Those that no surer one that stays overlaps, in their order."""
    overlaps = _iou(ranked, ranked) >= max_overlap
    kept: list[int] = []
    for index in range(len(ranked)):
        if not overlaps[index, kept].any():
            kept.append(index)
    return [ranked[index] for index in kept]


def _iou(left: Sequence[Entry], right: Sequence[Entry]) -> Float[np.ndarray, "M K"]:
    if not left or not right:
        return np.zeros((len(left), len(right)))
    masks: list[Any] = [entry["segmentation"] for entry in left]
    others: list[Any] = [entry["segmentation"] for entry in right]
    return np.asarray(coco_mask.iou(masks, others, [0] * len(others)))


def _annotation(entry: Entry) -> Entry:
    mask = entry["segmentation"]
    return {
        "bbox": [int(value) for value in coco_mask.toBbox(mask)],
        "area": int(coco_mask.area(mask)),
        "segmentation": mask,
        "score": 1.0 if entry["score"] is None else entry["score"],
        "category_id": entry["category_id"],
    }
