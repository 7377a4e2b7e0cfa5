"""COCO files of truth and of predictions, read with every field checked and matched image by image."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from figureground.data.annotation_file import open_annotations
from figureground.data.coco_fields import (
    AnnotatedImage,
    are_numbers,
    read_field,
    read_flag,
    read_images,
    shorten,
    to_number,
    to_whole,
)
from figureground.errors import UsageError
from figureground.ops.rle import RLE

OVERHANG = 1.0
"""Pixels that a box or polygon may reach over the border of its image: rounding, and data sets that count from one."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object as a COCO file describes it; its category is not kept.

    Attributes:
        id: The file's own; the position from 1 in a bare list of results.
        image: Where it is.
        bbox: xywh, px, as in the file; the extent of the mask where the file has none.
        area: Pixels: the file's own in a truth (it decides small, medium, large), else of the mask, else of the box.
        mask: Run-length encoded, of the size of the image.
        score: Higher is surer; any finite number.
        crowd: A region of several objects (``iscrowd``).
        difficult: An object that the benchmark calls difficult (PASCAL VOC).
    """

    id: int
    image: AnnotatedImage
    bbox: tuple[float, float, float, float]
    area: float
    mask: RLE | None = None
    score: float | None = None
    crowd: bool = False
    difficult: bool = False

    @property
    def rank(self) -> float:
        """What orders detections, surest first: the score, or the share of the image where there is no score.

        A method without scores is then ranked largest first. A constant for all (CutLER's choice) leaves the order to
        the numbering of images and the position in the file, so that the same masks have as many APs as there are
        orders to write them in; write ``"score": 1`` into the file to have that.
        """
        return self.area / (self.image.height * self.image.width) if self.score is None else self.score


@dataclass(frozen=True, slots=True)
class AnnotationSet:
    """The annotations of a file, image by image.

    Attributes:
        path: The file.
        images: In the order of their ids; of a prediction: those of the truth that the file covers.
        annotations: By image id, in the order of the file.
        passed_over: Images of a prediction that the truth does not list.
    """

    path: Path
    images: tuple[AnnotatedImage, ...]
    annotations: dict[int, tuple[Annotation, ...]]
    passed_over: int = 0

    def of(self, image: AnnotatedImage) -> tuple[Annotation, ...]:
        """What the file says of one image."""
        return self.annotations.get(image.id, ())

    def all(self) -> list[Annotation]:
        """What the file says of its images, in their order."""
        return [annotation for image in self.images for annotation in self.of(image)]

    def within(self, images: Iterable[AnnotatedImage]) -> "AnnotationSet":
        """The same for fewer images."""
        wanted = {image.id for image in images}
        return replace(self, images=tuple(image for image in self.images if image.id in wanted))


def read_truth(path: Path) -> AnnotationSet:
    """Read the ground truth; every category is as good as any other.

    Args:
        path: A COCO file with ``images`` and ``annotations``. Each annotation has an ``id``, an ``image_id`` and a
            ``bbox`` or a ``segmentation`` (polygons, runs, or compressed runs), and may have ``area``, ``iscrowd`` and
            ``difficult``.

    Raises:
        UsageError: If the file cannot be read or a field is missing, wrong or contradicts another; it names both.
    """
    file = open_annotations(path)
    if not file.is_coco:
        raise UsageError(f"{path} is not a truth file: it has no `images`.", "A truth file is a COCO file.")
    images = {image.id: image for image in read_images(file.entries("images", stop=True), path)}
    if not images:
        raise UsageError(f"{path}: `images` is empty: there is nothing to measure against.")
    annotations = _read_annotations(lambda: file.entries("annotations"), path, images, is_truth=True)
    return _grouped(path, images.values(), annotations)


def read_predictions(path: Path, truth: AnnotationSet) -> AnnotationSet:
    """Read predictions and match them to the images of the truth, whose ids they get.

    A file with ``images`` matches by id where all its images have the ids, names and sizes of the truth, else by file
    name, else by the last part of the name where that is unique. A bare list of results (COCO's results format, as
    published) matches by id. A file without annotations is valid: nothing was found.

    Args:
        path: A COCO file, or a bare list of results; each entry as in a truth file, with a ``score`` (all or none).
        truth: What it shall be compared with.

    Raises:
        UsageError: If the file cannot be read, a field is missing, wrong or contradicts another, or it is about other
            images than the truth; it names file and field.
    """
    file = open_annotations(path)
    if file.is_coco:
        images = {image.id: image for image in read_images(file.entries("images", stop=True), path)}
        matched = match_images(tuple(images.values()), path, truth)
        annotations = _read_annotations(lambda: file.entries("annotations"), path, images)
    elif file.is_results:
        images = matched = {image.id: image for image in truth.images}
        annotations = _read_annotations(file.entries, path, matched, whose=f" of {truth.path}")
    else:
        raise UsageError(f"{path} is neither a COCO file nor a list of results.")
    # Those of other images are let go one by one: there may be far more of them.
    moved = (
        replace(entry, image=matched[entry.image.id])
        for entry in _check_scores(annotations, path)
        if entry.image.id in matched
    )
    return replace(_grouped(path, matched.values(), moved), passed_over=len(images) - len(matched))


def _grouped(path: Path, images: Iterable[AnnotatedImage], annotations: Iterable[Annotation]) -> AnnotationSet:
    groups: dict[int, list[Annotation]] = {}
    for annotation in annotations:
        groups.setdefault(annotation.image.id, []).append(annotation)
    ordered = tuple(sorted(images, key=lambda image: image.id))
    return AnnotationSet(path, ordered, {key: tuple(group) for key, group in groups.items()})


def _read_annotations(
    entries: Callable[[], Iterable[Any]],
    path: Path,
    images: dict[int, AnnotatedImage],
    is_truth: bool = False,
    whose: str = "",
) -> Iterator[Annotation]:
    """Read entries; in a list of results (``whose`` says of which file the images are) they need no id of their own."""
    seen: set[int] = set()
    for index, entry in enumerate(entries()):
        where = f"{path}: entry {index + 1}" if whose else f"{path}: annotations[{index}]"
        number = index + 1
        if not whose:
            number = to_whole(read_field(entry, "id", where), "id", where)
            where = f"{path}: annotation {number}"
            if number in seen:
                raise UsageError(f"{where}: `id` is given twice.")
            seen.add(number)
        image_id = to_whole(read_field(entry, "image_id", where), "image_id", where)
        if image_id not in images:
            raise UsageError(
                f"{where}: `image_id` {image_id} is not among the {len(images)} images{whose}; "
                "that is so for {} of {} annotations.".format(*_strangers(entries(), images))
            )
        yield _read_annotation(entry, number, images[image_id], where, is_truth)


def _strangers(entries: Iterable[Any], images: dict[int, AnnotatedImage]) -> tuple[int, int]:
    """How many entries are of none of the images, and of how many in all."""
    strangers = total = 0
    for entry in entries:
        total += 1
        number = entry.get("image_id") if isinstance(entry, dict) else None
        strangers += isinstance(entry, dict) and (not isinstance(number, (int, float)) or number not in images)
    return strangers, total


def _read_annotation(
    entry: dict[str, Any], number: int, image: AnnotatedImage, where: str, is_truth: bool
) -> Annotation:
    mask = read_mask(entry.get("segmentation"), image, f"{where}: `segmentation`")
    if entry.get("bbox") is not None:
        bbox = _read_box(entry["bbox"], image, f"{where}: `bbox`")
    elif mask is not None:
        x, y, width, height = (float(value) for value in coco_mask.toBbox(_bytes(mask)))
        bbox = (x, y, width, height)
    else:
        raise UsageError(f"{where}: `bbox` and `segmentation` are both missing.")
    if is_truth and entry.get("area") is not None:
        area = to_number(entry["area"], "area", where)
        if area < 0:
            raise UsageError(f"{where}: `area` is negative: {area:g}.")
    else:
        area = bbox[2] * bbox[3] if mask is None else float(coco_mask.area(_bytes(mask)))
    return Annotation(
        id=number,
        image=image,
        bbox=bbox,
        area=area,
        mask=mask,
        score=to_number(entry["score"], "score", where) if "score" in entry and not is_truth else None,
        crowd=read_flag(entry, "iscrowd", where),
        difficult=read_flag(entry, "difficult", where),
    )


def _read_box(box: Any, image: AnnotatedImage, where: str) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4 or not are_numbers(box):
        raise UsageError(f"{where} is not four numbers: {shorten(box)}.")
    x, y, width, height = (float(value) for value in box)
    if width < 0 or height < 0:
        raise UsageError(f"{where} has a negative width or height: {shorten(box)}.", "Boxes are x, y, width, height.")
    right, bottom = x + width, y + height
    overhang = _overhang((x, right), (y, bottom), image)
    if overhang > OVERHANG:
        raise UsageError(
            f"{where} {shorten(box)} reaches {overhang:.6g} px out of its image of {image.width}x{image.height} px."
        )
    if overhang > 0:
        x, right = (min(max(value, 0.0), float(image.width)) for value in (x, right))
        y, bottom = (min(max(value, 0.0), float(image.height)) for value in (y, bottom))
        return x, y, right - x, bottom - y
    return x, y, width, height


def _overhang(xs: Sequence[float], ys: Sequence[float], image: AnnotatedImage) -> float:
    return max(-min(xs), -min(ys), max(xs) - image.width, max(ys) - image.height)


def read_mask(segmentation: Any, image: AnnotatedImage, where: str) -> RLE | None:
    """Polygons or run lengths as a run-length mask of the image's size; ``None`` where there is no segmentation.

    Raises:
        UsageError: If it is neither, is damaged, or leaves the image; named by ``where``.
    """
    if segmentation is None or segmentation == []:
        return None
    encoded: Any
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not are_numbers(polygon):
                raise UsageError(f"{where} is not a list of polygons x1, y1, x2, y2, x3, y3, ...: {shorten(polygon)}.")
            corners = [float(value) for value in polygon]
            overhang = _overhang(corners[::2], corners[1::2], image)
            if overhang > OVERHANG:
                raise UsageError(f"{where} reaches {overhang:.6g} px out of its {image.width}x{image.height} px.")
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, image.height, image.width))
        return _text(encoded)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise UsageError(f"{where} is neither polygons nor runs with `size` and `counts`: {shorten(segmentation)}.")
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [image.height, image.width]:
        raise UsageError(f"{where}: `size` {shorten(size)} is not the height and width of its image, {_size(image)}.")
    if isinstance(counts, list):
        runs = np.array(counts, dtype=np.float64) if counts and are_numbers(counts) else None
    else:
        runs = _runs(counts) if isinstance(counts, str) and counts.isascii() else None
    if runs is None or (runs < 0).any() or (runs % 1).any() or runs.sum() != image.height * image.width:
        raise UsageError(f"{where}: `counts` are not runs that fill the {image.height}x{image.width} px of its image.")
    if isinstance(counts, str):
        return {"size": size, "counts": counts}
    encoded = {"size": size, "counts": [int(run) for run in runs]}
    return _text(coco_mask.frPyObjects(encoded, image.height, image.width))


def _runs(counts: str) -> np.ndarray | None:
    """Decode COCO's compressed runs; ``None`` where the text is none.

    pycocotools takes a text cut short without complaint and fills the mask with whatever was in memory.
    """
    codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        return None
    # Each number is little-endian in groups of five bits; bit 5 says that another group follows, bit 4 of the last
    # one is the sign.
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    length = last - first + 1
    if length.max() > 8:
        return None
    place = np.arange(len(codes)) - np.repeat(first, length)
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    values -= ((codes[last] & 16) > 0).astype(np.int64) << (5 * length)
    # From the fourth on, each is the difference to the one before the last.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def match_images(images: Sequence[AnnotatedImage], path: Path, truth: AnnotationSet) -> dict[int, AnnotatedImage]:
    """Find the image of the truth for each image of another file, as :func:`read_predictions` does.

    Args:
        images: Of the other file, or folder.
        path: Where they are from, for the error.
        truth: What they shall be matched with.

    Returns:
        The image of the truth by the id of the other; those without one are left out.

    Raises:
        UsageError: If none of them has one, or the sizes of two that match differ.
    """
    by_id = {image.id: image for image in truth.images}
    if all(image.id in by_id and _agree(image, by_id[image.id]) for image in images):
        return {image.id: by_id[image.id] for image in images}
    matched: dict[int, AnnotatedImage] = {}
    for naming in (lambda image: image.file_name, _base_name):
        ours, theirs = _unique(images, naming), _unique(truth.images, naming)
        for name in ours.keys() & theirs.keys():
            matched.setdefault(ours[name].id, theirs[name])
    if not matched:
        raise UsageError(
            f"{path} and {truth.path} are about other images: none of the {len(images)} `images` of the first "
            f"(as {images[0].file_name!r}) has the `file_name` of one of the {len(truth.images)} of the second "
            f"(as {truth.images[0].file_name!r}).",
            "Give the truth of the images that were predicted on.",
        )
    for image in images:
        other = matched.get(image.id)
        if other is not None and (image.height, image.width) != (other.height, other.width):
            raise UsageError(
                f"{path}: image {image.id}, {image.file_name!r}: `height` and `width` are {_size(image)} "
                f"but {_size(other)} for image {other.id} of {truth.path} ({len(matched)} images have a name in both).",
            )
    return matched


def _agree(left: AnnotatedImage, right: AnnotatedImage) -> bool:
    same_size = (left.height, left.width) == (right.height, right.width)
    return same_size and _base_name(left) == _base_name(right)


def _base_name(image: AnnotatedImage) -> str:
    return PurePosixPath(image.file_name).name


def _unique(images: Iterable[AnnotatedImage], naming: Callable[[AnnotatedImage], str]) -> dict[str, AnnotatedImage]:
    images = list(images)
    counts = Counter(naming(image) for image in images)
    return {naming(image): image for image in images if counts[naming(image)] == 1}


def _check_scores(annotations: Iterable[Annotation], path: Path) -> Iterator[Annotation]:
    """Hand annotations on, and see at their end that all have a score or none has."""
    without, total, first = 0, 0, None
    for annotation in annotations:
        total += 1
        if annotation.score is None:
            without += 1
            first = annotation.id if first is None else first
        yield annotation
    if without and without < total:
        raise UsageError(
            f"{path}: annotation {first}: `score` is missing; that is so for {without} of {total} annotations.",
            "Give a score to all of them or to none.",
        )


def _size(image: AnnotatedImage) -> str:
    return f"{image.height} and {image.width}"


def _bytes(mask: RLE) -> Any:
    return {"size": mask["size"], "counts": mask["counts"].encode("ascii")}


def _text(encoded: Any) -> RLE:
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
