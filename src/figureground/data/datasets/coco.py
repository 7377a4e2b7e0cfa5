"""COCO's format: one JSON file of images, annotations and categories (COCO, COCO20K, UVO).

Reference:
    https://cocodataset.org/#format-data. Boxes are xywh, 0-based and half-open; a mask is a list of polygons, runs, or
    compressed runs; `iscrowd` marks a region of several objects.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools import mask as coco_mask

from figureground.data.datasets.catalogue import DataSet
from figureground.data.datasets.source import (
    Box,
    Source,
    TruthImage,
    TruthObject,
    check_size,
    clip_box,
    gather,
    image_size,
    read_bytes,
    read_lines,
    tidy,
)

# The one careful reader of COCO's masks; `read_truth` uses it too.
from figureground.data.truth import AnnotatedImage, read_mask
from figureground.errors import ImageError, UsageError

Entry = dict[str, Any]


def build(data_set: DataSet, root: Path) -> Source:
    """COCO, UVO, and COCO20K, whose list of names selects from COCO's file.

    A box is cut off at the border of its image; a mask that reaches further than a pixel out of it is broken.
    """
    path = root / data_set.annotations[0]
    images, objects, categories = load(path)
    source = read_entries(data_set, root, path, images, objects, categories, lambda entry: text(entry, "file_name"))
    return _selected(source, root / data_set.lists[0], path) if data_set.lists else source


def load(path: Path) -> tuple[list[Any], list[Any], dict[Any, str]]:
    """The images, the annotations and the names of the categories of a file.

    The whole file is held in memory, at about six times its size on disk.

    Raises:
        UsageError: If the file cannot be read, is cut short or damaged, or has no images or annotations.
    """
    content = parse(path)
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UsageError(f"{path}: `{key}` is missing or not a list.", "The original COCO-like file is needed.")
    categories = content.get("categories") or []
    named = [entry for entry in categories if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    return content["images"], content["annotations"], {_category(entry, "id"): entry["name"] for entry in named}


def parse(path: Path) -> Any:
    """A JSON file; one that is cut short or damaged is a :class:`UsageError` that says where."""
    try:
        content = read_bytes(path, UsageError).decode("utf-8-sig")
        return json.loads(content)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated") or not error.doc[error.pos :].strip()
        where = f"line {error.lineno}, column {error.colno}"
        problem = "it ends too early (not wholly downloaded?)" if cut else error.msg
        raise UsageError(f"{path}, {where}: not JSON: {problem}.", "Get the file again.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}.", "Get the file again.") from None


def read_entries(
    data_set: DataSet,
    root: Path,
    path: Path,
    images: list[Any],
    objects: list[Any],
    categories: Mapping[Any, str],
    name_of: Callable[[Entry], str],
    extra: tuple[str, ...] = (),
) -> Source:
    """A source over the entries of a COCO-like file.

    Args:
        data_set: The row.
        root: The data set's folder.
        path: The file, for messages.
        images: Its images.
        objects: Its annotations.
        categories: Names by id.
        name_of: The file name of an image's entry, relative to the row's ``image_root``; ``ValueError`` if it has none.
        extra: Keys of an image's entry to keep.

    Raises:
        UsageError: If an image's id is given twice.
    """
    groups: dict[int, list[tuple[str, Entry]]] = {}
    for index, entry in enumerate(images):
        if isinstance(entry, dict) and type(entry.get("id")) is int:
            if entry["id"] in groups:
                raise UsageError(f"{path}: images[{index}]: `id` {entry['id']} is given twice.")
            groups[entry["id"]] = []
    broken = []
    for index, entry in enumerate(objects):
        where = f"{path}: annotations[{index}]"
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if type(image_id) is int and image_id in groups:
            groups[image_id].append((where, entry))
        else:
            broken.append(f"{where}: `image_id` {image_id} is not among the images")
    folder = root / data_set.image_root

    def read(index: int) -> TruthImage:
        where = f"{path}: images[{index}]"
        entry = images[index]
        try:
            number, name = whole(entry, "id"), name_of(entry)
            size = (whole(entry, "height"), whole(entry, "width"))
        except ValueError as error:
            raise ImageError(f"{where}: {error}.") from None
        check_size(size, image_size(folder, name), where)
        image = AnnotatedImage(number, name, *size)
        found, wrong = gather(groups[number], lambda part: read_object(part, image, categories))
        kept = {key: entry[key] for key in extra if key in entry}
        return TruthImage(
            file_name=name, height=size[0], width=size[1], objects=found, broken=wrong, id=number, extra=kept
        )

    return Source([_label(entry, index, name_of) for index, entry in enumerate(images)], read, tuple(broken))


def read_object(entry: Entry, image: AnnotatedImage, categories: Mapping[Any, str]) -> TruthObject:
    """One annotation.

    Raises:
        ValueError: If a field is missing, wrong or contradicts the image.
    """
    try:
        mask = read_mask(entry.get("segmentation"), image, "`segmentation`")
    except UsageError as error:
        raise ValueError(error.message.removeprefix("`segmentation`: ")) from None
    encoded: Any = mask and {"size": mask["size"], "counts": mask["counts"].encode("ascii")}
    if entry.get("bbox") is not None:
        bbox = _box(entry["bbox"], image)
    elif encoded is not None:
        x, y, width, height = (float(value) for value in coco_mask.toBbox(encoded))
        bbox = clip_box((x, y, x + width, y + height), (image.height, image.width))
    else:
        raise ValueError("`bbox` and `segmentation` are both missing")
    area = entry.get("area")
    if area is None:
        area = tidy(bbox[2] * bbox[3]) if encoded is None else int(coco_mask.area(encoded))
    elif not _is_number(area) or area < 0:
        raise ValueError(f"`area` is not a positive number: {area!r}")
    if entry.get("iscrowd") not in (None, 0, 1):
        raise ValueError(f"`iscrowd` is neither 0 nor 1: {entry['iscrowd']!r}")
    category = _category(entry, "category_id")
    return TruthObject(
        bbox=bbox,
        area=area,
        mask=mask,
        crowd=bool(entry.get("iscrowd")),
        name=categories.get(category),
        orig_category_id=category,
    )


def whole(entry: Any, key: str) -> int:
    """A whole number of an entry; ``ValueError`` names the field."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise ValueError(f"`{key}` is not a whole number: {value!r}")
    return value


def text(entry: Any, key: str) -> str:
    """A text of an entry; ``ValueError`` names the field."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str) or not value:
        raise ValueError(f"`{key}` is not a text: {value!r}")
    return value


def _selected(source: Source, list_path: Path, path: Path) -> Source:
    """The images that a list names, in the order of the list."""
    by_name = {PurePosixPath(name).name: index for index, name in enumerate(source.names)}
    lines = read_lines(list_path, UsageError)
    wanted = list(dict.fromkeys(PurePosixPath(line.strip()).name for _, line in lines))

    def read(index: int) -> TruthImage:
        if wanted[index] not in by_name:
            raise ImageError(f"{list_path}: {wanted[index]} is not among the images of {path}.")
        return source.read(by_name[wanted[index]])

    return Source(wanted, read, source.broken)


def _label(entry: Any, index: int, name_of: Callable[[Entry], str]) -> str:
    try:
        return name_of(entry)
    except ValueError:
        return f"images[{index}]"


def _category(entry: Entry, key: str) -> int | str | None:
    value = entry.get(key)
    return value if type(value) in (int, str) else None


def _box(box: Any, image: AnnotatedImage) -> Box:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise ValueError(f"`bbox` is not four numbers: {box!r}")
    x, y, width, height = box
    return clip_box((x, y, x + width, y + height), (image.height, image.width))


def _is_number(value: Any) -> bool:
    # Not isinstance: true and false are no numbers. NaN is below nothing.
    return type(value) in (int, float) and abs(value) < 1e15
