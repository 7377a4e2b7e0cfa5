"""COCO files of instances, written record by record."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from figureground.ops.masks import mask_parents, resize_masks
from figureground.ops.rle import encode
from figureground.storage.atomic import writing
from figureground.structures import Instances

CATEGORY = {"id": 1, "name": "object"}


class ImageAnnotations(TypedDict):
    """One image and what was found in it, before ids are given out.

    ``annotations`` hold ``bbox`` (xywh, px), ``area`` (px), ``segmentation`` (run-length encoded), ``score``,
    ``category_id``.
    """

    file_name: str
    height: int
    width: int
    annotations: list[dict[str, Any]]


def annotate(
    file_name: str, size: tuple[int, int], instances: Instances, parts: bool = False, own_boxes: bool = False
) -> ImageAnnotations:
    """Bring instances to the size of their image and encode them; those with no pixel left are dropped.

    With ``parts``, ``parent`` is the place in the list of the annotation that each is part of, or ``None``. With
    ``own_boxes``, boxes are those of the instances, to a hundredth of a pixel, and not the extents of their masks.
    """
    annotations, kept = [], []
    # One at a time: at the full size of a large photograph a single mask is large enough.
    for index in range(len(instances)):
        mask = resize_masks(instances.masks[index : index + 1].cpu(), size)
        if not bool(mask.any()):
            continue
        kept.append(index)
        [rle] = encode(mask)
        if own_boxes:
            height, width = instances.masks.shape[1:]
            scale = (size[1] / width, size[0] / height) * 2
            x1, y1, x2, y2 = (round(v * s, 2) for v, s in zip(instances.boxes[index].tolist(), scale, strict=True))
        else:
            rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
            x1, y1, x2, y2 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        annotations.append(
            {
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": int(mask.count_nonzero()),  # a sum would take eight bytes a pixel
                "segmentation": rle,
                "score": round(float(instances.scores[index]), 6),
                "category_id": int(instances.labels[index]),
            }
        )
    if parts:
        for annotation, parent in zip(annotations, mask_parents(instances.masks[kept]), strict=True):
            annotation["parent"] = parent
    return {"file_name": file_name, "height": size[0], "width": size[1], "annotations": annotations}


def number(images: Iterable[ImageAnnotations]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image and its annotations as a COCO file lists them, with their ids: from 1, in the order given.

    ``parent``, where there is one, becomes the id of an annotation.
    """
    count = 0
    for image_id, image in enumerate(images, start=1):
        first = count + 1
        annotations = []
        for annotation in image["annotations"]:
            count += 1
            if annotation.get("parent") is not None:
                annotation = {**annotation, "parent": first + annotation["parent"]}
            annotations.append({"id": count, "image_id": image_id, "iscrowd": 0, **annotation})
        yield {"id": image_id, **{key: image[key] for key in ("file_name", "height", "width")}}, annotations


def write_coco(
    path: Path,
    images: Callable[[], Iterable[ImageAnnotations]],
    description: str,
    categories: Sequence[dict[str, Any]] = (CATEGORY,),
) -> tuple[int, int]:
    """Write a COCO file atomically without holding it in memory.

    Args:
        path: Where to.
        images: Gives the images from the first on, each time it is called (it is called twice).
        description: For the file's ``info``.
        categories: Of the annotations, each with ``id`` and ``name``.

    Returns:
        The number of images and of annotations; their ids are those of :func:`number`.
    """
    with writing(path) as file:

        def line(separator: str, entry: dict[str, Any]) -> None:
            file.write((separator + json.dumps(entry, separators=(",", ":"))).encode("ascii"))

        file.write(b'{"info":' + json.dumps({"description": description}).encode("ascii"))
        file.write(b',\n"categories":' + json.dumps(list(categories)).encode("ascii") + b',\n"images":[')
        image_count = 0
        for image_count, (image, _) in enumerate(number(images()), start=1):
            line(",\n" if image_count > 1 else "\n", image)
        file.write(b'],\n"annotations":[')
        count = 0
        for _, annotations in number(images()):
            for annotation in annotations:
                count += 1
                line(",\n" if count > 1 else "\n", annotation)
        file.write(b"]}\n")
    return image_count, count
