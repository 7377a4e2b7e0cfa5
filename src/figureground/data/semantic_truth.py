"""The class of every pixel by the truth: folders of class maps, or COCO files whose objects have classes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from figureground.data.coco_fields import read_json
from figureground.data.listing import ImageList, list_images
from figureground.data.truth import Annotation, AnnotationSet, read_truth
from figureground.errors import ImageError, UsageError
from figureground.storage.shards import fingerprint

IGNORE = 255
"""Of a pixel that does not count: a border, a crowd, an unlabelled one."""
NO_CLASS = 254
"""In a map that was predicted: a cluster that stands for no class."""
BACKGROUND = "background"
_MOST = 254
_REMEDY = (
    'A folder with classes.json, {"classes": ["background", "bird"], "images": "photos", "maps": "maps"}, and a PNG of '
    "class numbers for each image; or a COCO file of `figureground truth`."
)


@dataclass(frozen=True, slots=True)
class SemanticTruth:
    """Images whose every pixel has a class, or does not count.

    Attributes:
        path: The folder, or the file.
        classes: Names; a pixel's number is a place among them, or ``IGNORE``.
        images: Those that have a truth.
        digest: Changes with the truth.
        read: From an image's name to its map.
    """

    path: Path
    classes: tuple[str, ...]
    images: ImageList
    digest: str
    read: Callable[[str], UInt8[np.ndarray, "H W"]]

    @property
    def background(self) -> int | None:
        """The number of the class that is no object; ``None`` where the truth has none."""
        return self.classes.index(BACKGROUND) if BACKGROUND in self.classes else None

    def class_map(self, name: str, size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
        """The class of each pixel.

        Args:
            name: Of the image.
            size: ``(height, width)`` of it.

        Raises:
            ImageError: If the map is damaged, or not of the size of its image.
            UsageError: If it holds a number that is no class: then the truth is wrong as a whole.
        """
        found = self.read(name)
        if found.shape != size:
            raise ImageError(
                f"Its class map has {found.shape[0]}x{found.shape[1]} px, but the image {size[0]}x{size[1]} "
                "(height x width)."
            )
        return found


def open_semantic_truth(path: Path, images: Path | None = None) -> SemanticTruth:
    """Open a truth of classes.

    Args:
        path: A folder with ``classes.json``: an object with ``classes``, the names by number (a list, or an object with
            numbers as keys), and optionally ``images`` and ``maps``, folders relative to it (``images`` and ``maps``
            where it says nothing); the map of an image is a PNG of its name, grey or with a palette, 255 where a pixel
            does not count. Or a COCO file with masks whose objects have classes: ``name``, ``orig_category_id``, or
            several categories.
        images: The folder of the images, in the place of the one that the truth names; for a COCO file without
            ``images`` beside it, its own folder.

    Raises:
        UsageError: If it is neither, a file is missing, or there is no class or no image.
    """
    if path.is_dir():
        return _open_folder(path, images)
    if not path.is_file():
        raise UsageError(f"There is no truth at {path}.", _REMEDY)
    return _open_coco(path, images)


# Folders.


def _open_folder(path: Path, images: Path | None) -> SemanticTruth:
    listing = path / "classes.json"
    if not listing.is_file():
        raise UsageError(f"{path} is no truth of classes: it has no classes.json.", _REMEDY)
    content = read_json(listing)
    if not isinstance(content, dict):
        raise UsageError(f"{listing} is not an object.", _REMEDY)
    numbers, names = _read_classes(content.get("classes"), listing)
    maps = _folder(content, "maps", listing)
    photographs = list_images([images or _folder(content, "images", listing)])
    by_stem = unique_stems(photographs.names, f"{photographs.root}: for the maps of {path}")
    found: dict[str, Path] = {}
    for file in sorted(maps.rglob("*.png")):
        stem = file.relative_to(maps).with_suffix("").as_posix()
        if stem not in by_stem:
            raise UsageError(
                f"{file} is the class map of no image: {photographs.root} has no {stem}.*",
                'Name the folder of the images as "images" in classes.json.',
            )
        found[by_stem[stem]] = file
    if not found:
        raise UsageError(f"{maps} holds no class map (NAME.png).", _REMEDY)
    table = np.full(256, -1, dtype=np.int64)
    table[numbers] = np.arange(len(names))
    table[IGNORE] = IGNORE

    def read(name: str) -> UInt8[np.ndarray, "H W"]:
        places = table[read_class_map(found[name])]
        if (places < 0).any():
            wrong = np.unique(read_class_map(found[name])[places < 0]).tolist()
            raise UsageError(
                f"{found[name]} holds the class numbers {', '.join(map(str, wrong))}, which {listing} does not name.",
                "Add their names to `classes`, or make the pixels 255, which do not count.",
            )
        return places.astype(np.uint8)

    digest = fingerprint([json.dumps(content), *(f"{name}\n{file.stat().st_size}" for name, file in found.items())])
    return SemanticTruth(path, names, ImageList(photographs.root, tuple(sorted(found)), 0), digest, read)


def _read_classes(entry: Any, listing: Path) -> tuple[list[int], tuple[str, ...]]:
    """The numbers of the classes, ascending, and their names."""
    if isinstance(entry, list):
        entry = {str(number): name for number, name in enumerate(entry)}
    if not isinstance(entry, dict) or not entry:
        raise UsageError(f"{listing}: `classes` is no list of names, and no object of numbers and names.", _REMEDY)
    for number, name in entry.items():
        if not (number.isascii() and number.isdecimal() and int(number) <= _MOST - 1):
            raise UsageError(f"{listing}: {number!r} is not the number of a class, 0 to {_MOST - 1}.", _REMEDY)
        if not isinstance(name, str) or not name:
            raise UsageError(f"{listing}: the name of class {number} is not a text: {json.dumps(name)}.", _REMEDY)
    ordered = sorted((int(number), name) for number, name in entry.items())
    names = tuple(name for _, name in ordered)
    if len(set(names)) < len(names):
        raise UsageError(f"{listing} gives two classes one name.", "Give each its own.")
    return [number for number, _ in ordered], names


def _folder(content: Mapping[str, Any], key: str, listing: Path) -> Path:
    folder = listing.parent / str(content.get(key, key))
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}, where {listing} has its {key}.", _REMEDY)
    return folder


def unique_stems(names: tuple[str, ...], whose: str) -> dict[str, str]:
    """Names by what they are without their ending.

    Raises:
        UsageError: If two are then the same: one class map cannot be that of both.
    """
    found: dict[str, str] = {}
    for name in names:
        stem = PurePosixPath(name).with_suffix("").as_posix()
        if stem in found:
            raise UsageError(f"{whose}, {found[stem]} and {name} have one name.", "Rename one of them.")
        found[stem] = name
    return found


def read_class_map(path: Path) -> UInt8[np.ndarray, "H W"]:
    """The numbers in a PNG, grey or with a palette.

    Raises:
        ImageError: If it cannot be read, or is in colour.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise ImageError(f"{path} is no class map: it is neither grey nor has a palette ({image.mode}).")
            return np.asarray(image)
    except ImageError:
        raise
    except Exception as error:  # decoders raise what they like on damaged files
        raise ImageError(f"{path} is damaged or cannot be read ({error or type(error).__name__}).") from None


# COCO files.


def _open_coco(path: Path, images: Path | None) -> SemanticTruth:
    truth = read_truth(path)
    content = read_json(path)
    info = content.get("info")
    listed = info.get("classes") if isinstance(info, dict) else None
    class_of = classes_of(content)
    if listed is not None:
        _, names = _read_classes(listed, path)
    else:
        names = (BACKGROUND, *dict.fromkeys(name for name in _ordered(class_of.values()) if name != BACKGROUND))
    if not class_of or len(names) > _MOST:
        problem = f"{len(names)} classes; {_MOST} at most can be told apart" if class_of else "no object with a class"
        raise UsageError(f"{path} has {problem}.", _REMEDY)
    for entry in truth.all():
        if entry.mask is None:
            raise UsageError(f"{path}: annotation {entry.id} has no mask: boxes do not say where a class is.", _REMEDY)
    numbers = {name: number for number, name in enumerate(names)}
    strangers = sorted(set(class_of.values()) - set(names))
    if strangers:
        raise UsageError(f"{path}: `info.classes` does not name {strangers[0]!r}, which an annotation has.", _REMEDY)
    of_image = {image.file_name: image for image in truth.images}
    # What nothing covers is background, where that is a class.
    ground = numbers.get(BACKGROUND, IGNORE)

    def read(name: str) -> UInt8[np.ndarray, "H W"]:
        image = of_image[name]
        labels = {entry.id: numbers.get(class_of.get(entry.id, ""), IGNORE) for entry in truth.of(image)}
        return paint(truth.of(image), labels, (image.height, image.width), ground)

    root = images or (path.parent / "images" if (path.parent / "images").is_dir() else path.parent)
    names_ = tuple(sorted(of_image))
    unique_stems(names_, str(path))
    _check_there(root, names_, path)
    return SemanticTruth(path, names, ImageList(root, names_, 0), _digest(truth, class_of, names), read)


def paint(
    annotations: tuple[Annotation, ...], labels: Mapping[int, int], size: tuple[int, int], ground: int
) -> UInt8[np.ndarray, "H W"]:
    """One map of objects: crowds, which do not count, under all others, and small ones over large ones.

    Args:
        annotations: With masks.
        labels: By their ids.
        size: Of the image.
        ground: Where nothing is.

    Reference:
        The order is that of Niu et al., U2Seg, CVPR 2024: largest first.
    """
    painted = np.full(size, ground, dtype=np.uint8)
    for entry in sorted(annotations, key=lambda entry: (not entry.crowd, -_area(entry))):
        assert entry.mask is not None
        encoded: Any = {"size": entry.mask["size"], "counts": entry.mask["counts"].encode("ascii")}
        painted[coco_mask.decode(encoded) > 0] = IGNORE if entry.crowd else labels[entry.id]
    return painted


def classes_of(content: Mapping[str, Any]) -> dict[int, str]:
    """The class of each annotation of a COCO file that has one, by its id; crowd regions have none.

    That is ``name`` or ``orig_category_id``, as `figureground truth` writes them, else the category where the file has
    several.
    """
    categories = content.get("categories")
    named = {
        entry.get("id"): entry.get("name")
        for entry in (categories if isinstance(categories, list) else [])
        if isinstance(entry, dict)
    }
    found = {}
    for entry in content["annotations"]:
        name = entry.get("name", entry.get("orig_category_id"))
        if name is None and len(named) > 1:
            name = named.get(entry.get("category_id")) or entry.get("category_id")
        if name is not None and not entry.get("iscrowd"):
            found[entry["id"]] = str(name)
    return found


def _ordered(names: Any) -> list[str]:
    """By number where all are numbers, else by the alphabet."""
    unique = set(names)
    return sorted(unique, key=int) if all(name.isdecimal() for name in unique) else sorted(unique)


def _area(entry: Annotation) -> float:
    encoded: Any = entry.mask and {**entry.mask, "counts": entry.mask["counts"].encode("ascii")}
    return float(coco_mask.area(encoded))


def _check_there(root: Path, names: tuple[str, ...], path: Path) -> None:
    missing = [name for name in names if not (root / name).is_file()]
    if len(missing) == len(names):
        raise UsageError(
            f"None of the {len(names)} images of {path} is in {root}: there is no {missing[0]!r}.",
            "Name the folder that its file names are relative to.",
        )


def _digest(truth: AnnotationSet, class_of: Mapping[int, str], names: tuple[str, ...]) -> str:
    return fingerprint(
        [*names, *(f"{entry.image.file_name} {class_of.get(entry.id)} {entry.mask}" for entry in truth.all())]
    )
