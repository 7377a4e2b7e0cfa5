"""A small copy of every data set of the catalogue, written in its original format."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

from figureground.data.datasets.builders import open_source
from figureground.data.datasets.catalogue import find
from figureground.data.datasets.source import TruthImage
from figureground.errors import ImageError

SIZE = (40, 60)
SQUARE = np.zeros(SIZE, dtype=bool)
SQUARE[10:30, 20:50] = True


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_image(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (size[1], size[0]), (90, 120, 60)).save(path, exif=exif)
    return path


def put_mask(path: Path, values: np.ndarray, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 0, 0, 255, 0, 0])  # 0 and 1 are both black
    (image if mode in ("L", "P") else image.convert(mode)).save(path)
    return path


def runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed runs: lengths in column order, background first."""
    flat = np.concatenate([[0], mask.flatten(order="F").astype(np.int8), [-1]])
    ends = np.flatnonzero(np.diff(flat))
    lengths = np.diff(np.concatenate([[0], ends]))
    return {"size": list(mask.shape), "counts": [int(length) for length in lengths]}


def coco_image(number: int, name: str, size: tuple[int, int] = SIZE, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": size[0], "width": size[1], "license": 3, **more}


def put_coco(path: Path, images: list[Any], annotations: list[Any], categories: list[Any] | None = None) -> Path:
    categories = [{"id": 18, "name": "dog"}] if categories is None else categories
    return put(path, json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def voc_xml(objects: Iterable[str] = (), size: tuple[int, int] = SIZE, head: str = "") -> str:
    stated = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"{head}<annotation>\n<folder>VOC2007</folder>{stated}\n{''.join(objects)}</annotation>\n"


def voc_object(box: Iterable[float | str], name: str = "dog", more: str = "") -> str:
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>\n"


def kitti_line(kind: str, box: tuple[float, float, float, float]) -> str:
    return f"{kind} 0.00 0 -1.5 {' '.join(f'{value:.2f}' for value in box)} 1.5 1.6 3.7 1.0 1.5 10.0 -1.6\n"


COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)


def openimages_row(image: str, x1: float, x2: float, y1: float, y2: float, group: int = 0) -> str:
    return f"{image},xclick,/m/0bt9lr,1,{x1},{x2},{y1},{y2},0,0,{group},0,0\n"


def read(name: str, root: Path) -> tuple[dict[str, TruthImage], dict[str, str], tuple[str, ...]]:
    """The records by file name, the errors by name, and what was left out besides."""
    source = open_source(find(name), root)
    records = dict(source.records())
    good = {key: record for key, record in records.items() if isinstance(record, TruthImage)}
    assert all(key == record.file_name for key, record in good.items())
    bad = {key: record.message for key, record in records.items() if isinstance(record, ImageError)}
    return good, bad, source.broken


def _coco(root: Path, part: str, names: list[str], folder: str | None = None) -> None:
    images = [coco_image(index, name) for index, name in enumerate(names, start=7)]
    objects = [
        {"id": index, "image_id": index, "category_id": 18, "bbox": [20, 10, 30, 20], "segmentation": runs(SQUARE)}
        for index in (7, 8)
    ]
    put_coco(root / part, images, objects)
    for name in names:
        put_image(root / (folder or "") / name)


def _voc(root: Path, sets: str = "trainval test") -> None:
    for index, part in enumerate(sets.split()):
        put(root / f"ImageSets/Main/{part}.txt", f"00{index}\n01{index}\n")
        for stem in (f"00{index}", f"01{index}"):
            put(root / f"Annotations/{stem}.xml", voc_xml([voc_object((21, 11, 50, 30))]))
            put_image(root / f"JPEGImages/{stem}.jpg")


def _lvis(root: Path) -> None:
    names = ["val2017/000000000001.jpg", "train2017/000000000002.jpg"]
    images = []
    for index, name in enumerate(names, start=7):
        put_image(root / name)
        images.append({**coco_image(index, ""), "coco_url": f"http://images.cocodataset.org/{name}"})
        del images[-1]["file_name"]
    corners = [20, 10, 50, 10, 50, 30, 20, 30]
    entry = {"category_id": 18, "bbox": [20, 10, 30, 20], "area": 600.0, "segmentation": [corners]}
    objects = [{"id": index, "image_id": index, **entry} for index in (7, 8)]
    put_coco(root / "annotations/lvis_v1_val.json", images, objects)


def _kitti(root: Path) -> None:
    for stem in ("000000", "000001"):
        put_image(root / f"training/image_2/{stem}.png")
        put(root / f"training/label_2/{stem}.txt", kitti_line("Car", (20, 10, 50, 30)))


def _openimages(root: Path) -> None:
    rows = [openimages_row(name, 1 / 3, 5 / 6, 0.25, 0.75) for name in ("aa", "bb")]
    put(root / "validation-annotations-bbox.csv", f"{COLUMNS}\n{''.join(rows)}")
    for name in ("aa", "bb"):
        put_image(root / f"validation/{name}.jpg")


def _saliency(root: Path, images: str, masks: str) -> None:
    for stem in ("0001", "0002"):
        put_image(root / images / f"{stem}.jpg")
        put_mask(root / masks / f"{stem}.png", SQUARE * 255)


def _davis(root: Path, part: str) -> None:
    frames = ["bear/00000", "camel/00000"]
    lines = [f"/JPEGImages/480p/{frame}.jpg /Annotations/480p/{frame}.png\n" for frame in frames]
    put(root / f"ImageSets/480p/{part}.txt", "".join(lines))
    for frame in frames:
        put_image(root / f"JPEGImages/480p/{frame}.jpg")
        put_mask(root / f"Annotations/480p/{frame}.png", SQUARE * 255)


def _coco20k(root: Path) -> None:
    names = ["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"]
    _coco(root, "annotations/instances_train2014.json", names, "train2014")
    put(root / "coco_20k_filenames.txt", "".join(f"{name}\n" for name in names))


def put_map(path: Path, numbers: np.ndarray) -> Path:
    """A class map as VOC writes it: a PNG with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers.astype(np.uint8))
    image.putpalette([value for number in range(256) for value in (number, 0, 255 - number)])
    image.save(path)
    return path


def put_sbd(path: Path, numbers: np.ndarray) -> Path:
    """A truth of SBD: one MATLAB structure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"GTcls": {"Segmentation": numbers.astype(np.uint8), "CategoriesPresent": [12]}})
    return path


def put_stuff_categories(root: Path) -> None:
    """The categories of COCO's two files, few enough; each supercategory has one."""
    names = find("cocostuff27_val").classes
    things = [{"id": number, "name": name, "supercategory": name} for number, name in enumerate(names[:12], start=1)]
    stuff = [{"id": 100 + at, "name": f"{name}-1", "supercategory": name} for at, name in enumerate(names[12:])]
    other = {"id": 183, "name": "other", "supercategory": "other"}
    put_coco(root / "annotations/instances_val2017.json", [], [], things)
    put_coco(root / "annotations/stuff_val2017.json", [], [], [*stuff, other])


def _voc_classes(root: Path, part: str) -> None:
    for name in ("2007_000033", "2007_000042"):
        put_image(root / f"JPEGImages/{name}.jpg")
    if part != "trainaug":
        put(root / f"ImageSets/Segmentation/{part}.txt", "2007_000033\n2007_000042\n")
        for name in ("2007_000033", "2007_000042"):
            put_map(root / f"SegmentationClass/{name}.png", SQUARE * 12)
        return
    sbd = root / "benchmark_RELEASE/dataset"
    put(root / "ImageSets/Segmentation/train.txt", "2007_000033\n")
    put(root / "ImageSets/Segmentation/val.txt", "2007_000061\n")
    put(sbd / "train.txt", "2007_000042\n2007_000033\n")
    put(sbd / "val.txt", "2007_000061\n")
    put_map(root / "SegmentationClass/2007_000033.png", SQUARE * 12)
    put_sbd(sbd / "cls/2007_000042.mat", SQUARE * 12)


def _coco_stuff(root: Path, part: str, curated: str = "") -> None:
    put_stuff_categories(root)
    names = [Path(name).stem for name in _NAMES]
    for name in names:
        put_image(root / part / f"{name}.jpg")
        put_mask(root / f"stuffthingmaps/{part}/{name}.png", np.where(SQUARE, 3, 255))
    if curated:
        put(root / curated, "".join(f"{name}\n" for name in names))


_CURATED = "curated/{}/Coco164kFull_Stuff_Coarse_7.txt"
_NAMES = ["000000000009.jpg", "000000000025.jpg"]
_O365 = ["images/v1/patch0/objects365_v1_1.jpg", "images/v2/patch16/objects365_v2_2.jpg"]
# Each has two images with one object: a square in the middle, as `SQUARE`.
WRITERS: dict[str, Callable[[Path], None]] = {
    "voc07_trainval": lambda root: _voc(root, "trainval"),
    "voc07": _voc,
    "voc12_trainval": lambda root: _voc(root, "trainval"),
    "coco_val2017": lambda root: _coco(root, "annotations/instances_val2017.json", _NAMES, "val2017"),
    "coco_train2017": lambda root: _coco(root, "annotations/instances_train2017.json", _NAMES, "train2017"),
    "coco20k": _coco20k,
    "lvis_val": _lvis,
    "uvo_val": lambda r: _coco(r, "annotations/UVO_frame_val.json", ["a/0.png", "b/0.png"], "all_UVO_frames"),
    "kitti": _kitti,
    "objects365_val": lambda root: _coco(root, "annotations/zhiyuan_objv2_val.json", _O365),
    "openimages_val": _openimages,
    "clipart": lambda root: _voc(root, "train test"),
    "watercolor": lambda root: _voc(root, "train test"),
    "comic": lambda root: _voc(root, "train test"),
    "duts_te": lambda root: _saliency(root, "DUTS-TE-Image", "DUTS-TE-Mask"),
    "ecssd": lambda root: _saliency(root, "images", "ground_truth_mask"),
    "dut_omron": lambda root: _saliency(root, "DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    "davis2016_val": lambda root: _davis(root, "val"),
    "davis2016_trainval": lambda root: _davis(root, "trainval"),
    "voc12_classes_val": lambda root: _voc_classes(root, "val"),
    "voc12_classes_train": lambda root: _voc_classes(root, "train"),
    "voc12_classes_trainaug": lambda root: _voc_classes(root, "trainaug"),
    "cocostuff27_val": lambda root: _coco_stuff(root, "val2017"),
    "cocostuff27_val_curated": lambda root: _coco_stuff(root, "val2017", _CURATED.format("val2017")),
    "cocostuff27_train_curated": lambda root: _coco_stuff(root, "train2017", _CURATED.format("train2017")),
}
