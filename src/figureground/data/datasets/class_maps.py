"""Sets whose every pixel has a class: PASCAL VOC's segmentation with SBD's, and COCO-Stuff by 27 coarse classes.

Each class of an image becomes one annotation of all its pixels, marked as `stuff`; the names of all classes go to the
file's `info`. Pixels that do not count become a crowd region where there is a background, else they are covered by
nothing.

Reference:
    Everingham et al., The PASCAL VOC 2012 Development Kit, section 'Segmentation': 0 is background, 255 a border that
    does not count. Hariharan et al., Semantic contours from inverse detectors, ICCV 2011 (SBD): a MATLAB file an image,
    `GTcls.Segmentation`, in VOC's classes. Caesar et al., COCO-Stuff, CVPR 2018: a pixel is a category's id less one,
    255 is unlabelled; the 27 classes are its supercategories, as Ji et al., IIC, ICCV 2019, and Cho et al., PiCIE, CVPR
    2021, use them, read here from COCO's own files.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from jaxtyping import Int64, UInt8
from pycocotools import mask as coco_mask

from figureground.data.datasets.catalogue import DataSet
from figureground.data.datasets.coco import parse
from figureground.data.datasets.source import (
    Source,
    TruthImage,
    TruthObject,
    check_size,
    image_size,
    read_lines,
)
from figureground.data.semantic_truth import BACKGROUND, IGNORE, read_class_map
from figureground.errors import ImageError, UsageError
from figureground.ops.rle import encode


def build_voc(data_set: DataSet, root: Path) -> Source:
    """The images of a list of VOC, or of the union of VOC's and SBD's without VOC's val (`trainaug`)."""
    lists = [_names(root / part) for part in data_set.lists]
    masks = root / data_set.annotations[0]
    if len(lists) > 1:
        train, val, *more = lists
        names = sorted(set(train).union(*more) - set(val))
    else:
        [names] = lists
    # Where both have an image, VOC's own is the finer one.
    own = set(lists[0])

    def read(index: int) -> TruthImage:
        name = names[index]
        if name in own:
            path = masks / f"{name}.png"
            numbers = read_class_map(path)
        else:
            path = root / data_set.annotations[1] / f"{name}.mat"
            numbers = _read_sbd(path)
        return _image(data_set, root, f"{name}.jpg", numbers, path)

    return Source([f"{name}.jpg" for name in names], read)


def build_coco_stuff(data_set: DataSet, root: Path) -> Source:
    """The images of a folder of pixel maps, or of a list; the coarse class of a category is its supercategory."""
    maps, *listings = (root / part for part in data_set.annotations)
    coarse = _coarse(data_set, listings)
    names = _names(root / data_set.lists[0]) if data_set.lists else sorted(path.stem for path in maps.glob("*.png"))

    def read(index: int) -> TruthImage:
        path = maps / f"{names[index]}.png"
        fine = read_class_map(path)
        numbers = coarse[fine]
        if (numbers < 0).any():
            raise ImageError(f"{path} holds {int(fine[numbers < 0][0])}, which is no category of {listings[0].parent}.")
        return _image(data_set, root, f"{names[index]}.jpg", numbers.astype(np.uint8), path)

    return Source([f"{name}.jpg" for name in names], read)


def _names(path: Path) -> list[str]:
    """The first word of each line, without folders and ending."""
    return list(dict.fromkeys(Path(line.split()[0]).stem for _, line in read_lines(path, UsageError)))


def _read_sbd(path: Path) -> UInt8[np.ndarray, "H W"]:
    try:
        numbers = np.asarray(scipy.io.loadmat(str(path))["GTcls"]["Segmentation"][0, 0])
        if numbers.ndim != 2 or numbers.dtype != np.uint8:
            raise ValueError(f"GTcls.Segmentation is {numbers.dtype} {numbers.shape}")
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except Exception as error:  # the reader raises what it likes on damaged files
        raise ImageError(f"{path} is not a truth of SBD ({error or type(error).__name__}).") from None
    return numbers


def _coarse(data_set: DataSet, listings: Iterable[Path]) -> Int64[np.ndarray, "256"]:
    """From a pixel's value to the place of its supercategory; -1 for what is no category."""
    table = np.full(256, -1, dtype=np.int64)
    table[IGNORE] = IGNORE
    for path in listings:
        content = parse(path)
        entries = content.get("categories") if isinstance(content, dict) else None
        for entry in entries or []:
            kind = entry["supercategory"]
            if kind == "other":
                # Of the stuff's file: any thing.
                continue
            if kind not in data_set.classes:
                raise UsageError(
                    f"{path}: {kind!r} is none of the {len(data_set.classes)} supercategories of COCO-Stuff."
                )
            table[entry["id"] - 1] = data_set.classes.index(kind)
        if not entries:
            raise UsageError(f"{path}: `categories` is missing or empty.", "COCO's original file is needed.")
    missing = set(range(len(data_set.classes))) - set(table.tolist())
    if missing:
        names = ", ".join(data_set.classes[number] for number in sorted(missing))
        raise UsageError(f"No category of COCO's files is {names}.", "Both original files are needed: things, stuff.")
    return table


def _image(data_set: DataSet, root: Path, file_name: str, numbers: UInt8[np.ndarray, "H W"], path: Path) -> TruthImage:
    height, width = size = image_size(root / data_set.image_root, file_name)
    check_size((numbers.shape[0], numbers.shape[1]), size, str(path))
    objects = []
    for number in np.unique(numbers).tolist():
        if number != IGNORE and number >= len(data_set.classes):
            raise ImageError(f"{path} holds {number}, but there are the classes 0 to {len(data_set.classes) - 1}.")
        name = None if number == IGNORE else data_set.classes[number]
        if name == BACKGROUND or (name is None and BACKGROUND not in data_set.classes):
            continue
        [rle] = encode(torch.from_numpy(numbers == number)[None])
        encoded: Any = {**rle, "counts": rle["counts"].encode("ascii")}
        x, y, w, h = (int(value) for value in coco_mask.toBbox(encoded))
        objects.append(
            TruthObject(
                bbox=(x, y, w, h),
                area=int(coco_mask.area(encoded)),
                mask=rle,
                crowd=name is None,
                stuff=name is not None,
                name=name,
                orig_category_id=None if name is None else number,
            )
        )
    return TruthImage(file_name=file_name, height=height, width=width, objects=tuple(objects))
