"""Every data set there is a builder for, one row each. Text only: torch is not imported here.

Numbers of images are quoted from the publications, and terms are in our words: neither could be looked up from where
this catalogue was written. `figureground truth` says where it finds another number, and what counts is what the
publisher's page says.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from figureground.errors import UsageError

Format = Literal[
    "coco",
    "lvis",
    "objects365",
    "voc",
    "kitti",
    "openimages",
    "saliency_masks",
    "davis",
    "voc_classes",
    "coco_stuff",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One data set, or one part of it. Paths are relative to the folder ROOT that a person gives.

    Attributes:
        name: What a person types.
        title: What people call it.
        measures: What it is used for.
        format: How the original annotations are written: names the builder.
        annotations: Files or folders of annotations.
        images: Folders of images.
        lists: Files that say which images belong to it.
        example: One image, as it lies in ROOT.
        masks: Whether it has masks; else only boxes.
        published_images: Quoted.
        licence: Its terms, in a sentence.
        homepage: Where to get it.
        classes: Of a set whose every pixel has one, their names by number; else none.
        notes: What to know about numbers on it.
    """

    name: str
    title: str
    measures: str
    format: Format
    annotations: tuple[str, ...]
    images: tuple[str, ...]
    lists: tuple[str, ...] = ()
    example: str
    masks: bool
    published_images: int
    licence: str
    homepage: str
    classes: tuple[str, ...] = ()
    notes: str = ""

    @property
    def layout(self) -> tuple[str, ...]:
        """Every path that must be there."""
        return (*self.annotations, *self.lists, *(f"{folder}/" for folder in self.images))

    @property
    def image_root(self) -> str:
        """The folder that file names are relative to: the deepest that holds all images, as in a run of `label`."""
        return self.images[0] if len(self.images) == 1 else "."


_BOX_AP = "class-agnostic box AP and AR, zero-shot"
_MASK_AP = "class-agnostic box and mask AP and AR, zero-shot"
_CORLOC = "CorLoc (single-object discovery)"
_SALIENCY = "foreground IoU, accuracy, max-F"
_SEMANTIC = "mIoU of classes"

_FLICKR = "images from Flickr under its terms of use"
_COCO_TERMS = f"Annotations CC BY 4.0; {_FLICKR}, many of them non-commercial."
_VOC_TERMS = f"No licence; {_FLICKR}, annotations for research."
_ARTISTS = "No licence stated for the images, which are their artists' and collected for research."
_UNSTATED = "No licence stated; published for research."


def _voc(name: str, title: str, measures: str, sets: str, images: int, year: str) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        measures=measures,
        format="voc",
        annotations=("Annotations",),
        images=("JPEGImages",),
        lists=tuple(f"ImageSets/Main/{part}.txt" for part in sets.split()),
        example="JPEGImages/000005.jpg" if year == "2007" else "JPEGImages/2008_000002.jpg",
        masks=False,
        published_images=images,
        licence=_VOC_TERMS,
        homepage=f"http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/",
        notes=f"ROOT is VOCdevkit/VOC{year}. Difficult objects are kept and marked.",
    )


def _coco(name: str, title: str, part: str, measures: str, images: int, lists: tuple[str, ...] = ()) -> DataSet:
    prefix = "COCO_train2014_" if part == "train2014" else ""
    return DataSet(
        name=name,
        title=title,
        measures=measures,
        format="coco",
        annotations=(f"annotations/instances_{part}.json",),
        images=(part,),
        lists=lists,
        example=f"{part}/{prefix}{'000000000139' if part == 'val2017' else '000000000009'}.jpg",
        masks=True,
        published_images=images,
        licence=_COCO_TERMS,
        homepage="https://cocodataset.org/#download",
        notes=(
            "The list of file names, one a line, is an input that you have: `datasets/coco_20k_filenames.txt` of "
            "https://github.com/valeoai/LOST; put it into ROOT. Folders before a name are passed over."
            if lists
            else ""
        ),
    )


def _cross_domain(name: str, title: str, images: int, classes: int) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        measures=_BOX_AP,
        format="voc",
        annotations=("Annotations",),
        images=("JPEGImages",),
        lists=("ImageSets/Main/train.txt", "ImageSets/Main/test.txt"),
        example="JPEGImages/NAME.jpg",
        masks=False,
        published_images=images,
        licence=_ARTISTS,
        homepage="https://github.com/naoto0804/cross-domain-detection",
        notes=f"ROOT is the folder {name}. Only objects of {classes} classes are annotated: AP is too low by the rest.",
    )


def _saliency(name: str, title: str, images: int, folders: tuple[str, str], homepage: str, licence: str) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        measures=_SALIENCY,
        format="saliency_masks",
        annotations=(folders[1],),
        images=(folders[0],),
        example=f"{folders[0]}/NAME.jpg",
        masks=True,
        published_images=images,
        licence=licence,
        homepage=homepage,
        notes=f"The mask of an image is {folders[1]}/NAME.png: above 127 is foreground.",
    )


def _davis(part: str, images: int) -> DataSet:
    return DataSet(
        name=f"davis2016_{part}",
        title=f"DAVIS 2016 {part}",
        measures=f"{_SALIENCY}; motion blur, water, crowds",
        format="davis",
        annotations=("Annotations/480p",),
        images=("JPEGImages/480p",),
        lists=(f"ImageSets/480p/{part}.txt",),
        example="JPEGImages/480p/blackswan/00000.jpg",
        masks=True,
        published_images=images,
        licence="Published for research; the terms are on its page.",
        homepage="https://davischallenge.org/davis2016/code.html",
        notes="ROOT is the folder DAVIS. Frames of 480p; anything not black is foreground.",
    )


_VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
# COCO-Stuff's supercategories: of things, then of stuff.
_STUFF_CLASSES = (
    "person vehicle outdoor animal accessory sports kitchen food furniture electronic appliance indoor textile "
    "building raw-material furniture-stuff floor plant food-stuff ground structural water wall window ceiling sky "
    "solid"
)


def _voc_classes(part: str, images: int) -> DataSet:
    sets, sbd = "ImageSets/Segmentation", "benchmark_RELEASE/dataset"
    augmented = part == "trainaug"
    return DataSet(
        name=f"voc12_classes_{part}",
        title=f"PASCAL VOC 2012 segmentation, {part}",
        measures=f"{_SEMANTIC}{', to learn from' if part != 'val' else ''}",
        format="voc_classes",
        annotations=("SegmentationClass", f"{sbd}/cls") if augmented else ("SegmentationClass",),
        images=("JPEGImages",),
        lists=(f"{sets}/train.txt", f"{sets}/val.txt", f"{sbd}/train.txt", f"{sbd}/val.txt")
        if augmented
        else (f"{sets}/{part}.txt",),
        example="JPEGImages/2007_000033.jpg",
        masks=True,
        published_images=images,
        licence=_VOC_TERMS,
        homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        classes=tuple(_VOC_CLASSES.split()),
        notes="ROOT is VOCdevkit/VOC2012. The border, 255, becomes a crowd region."
        + (
            " SBD's benchmark.tgz, of http://home.bharathh.info/pubs/codes/SBD/download.html, is unpacked in ROOT; "
            "trainaug is VOC's train and all of SBD without VOC's val."
            if augmented
            else ""
        ),
    )


def _coco_stuff(name: str, part: str, images: int, curated: str = "") -> DataSet:
    return DataSet(
        name=name,
        title=f"COCO-Stuff {part} by 27 coarse classes{', curated' if curated else ''}",
        measures=f"{_SEMANTIC}{', to learn from' if part == 'train2017' else ''}",
        format="coco_stuff",
        annotations=(
            f"stuffthingmaps/{part}",
            "annotations/instances_val2017.json",
            "annotations/stuff_val2017.json",
        ),
        images=(part,),
        lists=(curated,) if curated else (),
        example=f"{part}/000000000{'139' if part == 'val2017' else '009'}.jpg",
        masks=True,
        published_images=images,
        licence=_COCO_TERMS,
        homepage="https://github.com/nightrome/cocostuff",
        classes=tuple(_STUFF_CLASSES.split()),
        notes="The pixel maps (stuffthingmaps_trainval2017.zip) go to ROOT/stuffthingmaps; the classes of the "
        "categories are read from COCO's own files. There is no background; unlabelled pixels do not count."
        + (
            " The list, one image a line, is an input that you have: IIC and PiCIE measure on it. The number of "
            "images is that of the papers."
            if curated
            else ""
        ),
    )


DATA_SETS: dict[str, DataSet] = {
    row.name: row
    for row in (
        _voc("voc07_trainval", "PASCAL VOC 2007 trainval", _CORLOC, "trainval", 5011, "2007"),
        _voc("voc07", "PASCAL VOC 2007 trainval and test", _BOX_AP, "trainval test", 9963, "2007"),
        _voc("voc12_trainval", "PASCAL VOC 2012 trainval", _CORLOC, "trainval", 11540, "2012"),
        _coco("coco_val2017", "COCO val2017", "val2017", _MASK_AP, 5000),
        _coco("coco_train2017", "COCO train2017", "train2017", "training with few labels", 118287),
        _coco("coco20k", "COCO20K", "train2014", f"{_CORLOC}; {_MASK_AP}", 19817, ("coco_20k_filenames.txt",)),
        DataSet(
            name="lvis_val",
            title="LVIS v1 val",
            measures=f"{_MASK_AP}; many small and rare objects",
            format="lvis",
            annotations=("annotations/lvis_v1_val.json",),
            images=("train2017", "val2017"),
            example="val2017/000000397133.jpg",
            masks=True,
            published_images=19809,
            licence=_COCO_TERMS,
            homepage="https://www.lvisdataset.org/dataset",
            notes=(
                "Images are COCO's. No image is annotated with all its categories; those known to be absent or not "
                "annotated everywhere are kept per image. CutLER measured on a file of its own ('cocofied')."
            ),
        ),
        DataSet(
            name="uvo_val",
            title="UVO sparse val",
            measures=f"{_MASK_AP}; every object, of any class",
            format="coco",
            annotations=("annotations/UVO_frame_val.json",),
            images=("all_UVO_frames",),
            example="all_UVO_frames/NAME.png",
            masks=True,
            published_images=7356,
            licence="Terms of the annotations: see its page; frames of YouTube videos (Kinetics-400), their owners'.",
            homepage="https://sites.google.com/view/unidentified-video-object",
            notes="The COCO-like file of the sparse frames, by whatever name you got it, goes to the path above.",
        ),
        DataSet(
            name="kitti",
            title="KITTI object detection, training",
            measures=f"{_BOX_AP}; driving",
            format="kitti",
            annotations=("training/label_2",),
            images=("training/image_2",),
            example="training/image_2/000000.png",
            masks=False,
            published_images=7481,
            licence="CC BY-NC-SA 3.0.",
            homepage="https://www.cvlibs.net/datasets/kitti/eval_object.php?obj_benchmark=2d",
            notes="DontCare regions become crowd regions, which neither help nor hurt.",
        ),
        DataSet(
            name="objects365_val",
            title="Objects365 v2 val",
            measures=f"{_BOX_AP}; 365 classes",
            format="objects365",
            annotations=("annotations/zhiyuan_objv2_val.json",),
            images=("images",),
            example="images/v1/patch8/objects365_v1_00420917.jpg",
            masks=False,
            published_images=80000,
            licence=f"Annotations CC BY 4.0; {_FLICKR}, for research.",
            homepage="https://www.objects365.org/download.html",
            notes="The archives v1/patchN and v2/patchN are unpacked under ROOT/images.",
        ),
        DataSet(
            name="openimages_val",
            title="OpenImages v6 validation",
            measures=f"{_BOX_AP}; 600 classes",
            format="openimages",
            annotations=("validation-annotations-bbox.csv",),
            images=("validation",),
            example="validation/0001eeaf4aed83f9.jpg",
            masks=False,
            published_images=41620,
            licence="Annotations CC BY 4.0; images listed as CC BY 2.0.",
            homepage="https://storage.googleapis.com/openimages/web/download.html",
            notes="Groups become crowd regions. If class-descriptions-boxable.csv is in ROOT, it names the classes.",
        ),
        _cross_domain("clipart", "Clipart1k", 1000, 20),
        _cross_domain("watercolor", "Watercolor2k", 2000, 6),
        _cross_domain("comic", "Comic2k", 2000, 6),
        _saliency(
            "duts_te",
            "DUTS-TE",
            5019,
            ("DUTS-TE-Image", "DUTS-TE-Mask"),
            "http://saliencydetection.net/duts/",
            "No licence stated; images of ImageNet and SUN, for non-commercial research.",
        ),
        _saliency(
            "ecssd",
            "ECSSD",
            1000,
            ("images", "ground_truth_mask"),
            "https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html",
            _UNSTATED,
        ),
        _saliency(
            "dut_omron",
            "DUT-OMRON",
            5168,
            ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
            "http://saliencydetection.net/dut-omron/",
            _UNSTATED,
        ),
        _davis("val", 1376),
        _davis("trainval", 3455),
        _voc_classes("val", 1449),
        _voc_classes("train", 1464),
        _voc_classes("trainaug", 10582),
        _coco_stuff("cocostuff27_val", "val2017", 5000),
        _coco_stuff("cocostuff27_val_curated", "val2017", 2175, "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"),
        _coco_stuff(
            "cocostuff27_train_curated", "train2017", 49629, "curated/train2017/Coco164kFull_Stuff_Coarse_7.txt"
        ),
    )
}


def find(name: str) -> DataSet:
    """The row of a data set.

    Raises:
        UsageError: If there is none of that name; it names the nearest one.
    """
    if name in DATA_SETS:
        return DATA_SETS[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), DATA_SETS, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"There is no data set {name!r}.", f"{hint}`figureground truth list` shows all of them.")


def check_layout(data_set: DataSet, root: Path) -> None:
    """Say clearly what is missing.

    Raises:
        UsageError: If a path is missing: which were expected, which are not there, where to get the set, its terms.
    """
    missing = _missing(data_set, root)
    if not missing:
        return
    if not root.is_dir():
        problem = f"There is no folder {root}."
    else:
        problem = (
            f"{data_set.title} is not complete in {root}: {len(missing)} of {len(data_set.layout)} paths are missing."
        )
    lines = [f"  {'missing' if path in missing else 'there  '}  {root / path}" for path in data_set.layout]
    inside = [child for child in sorted(root.glob("*")) if not _missing(data_set, child)]
    where = f"Did you mean {inside[0]}?\n" if inside else ""
    raise UsageError("\n".join([problem, *lines]), where + how_to_get(data_set))


def how_to_get(data_set: DataSet) -> str:
    """Where a set is to be had, how it lies in its folder, and on which terms; a few lines."""
    lines = [
        f"Get {data_set.title} from {data_set.homepage} ({data_set.published_images} images).",
        f"ROOT holds {', '.join(data_set.layout)}; an image is ROOT/{data_set.example}.",
        f"Terms: {data_set.licence}",
    ]
    return "\n".join([*lines, data_set.notes] if data_set.notes else lines)


def _missing(data_set: DataSet, root: Path) -> list[str]:
    return [path for path in data_set.layout if not os.path.exists(root / path)]
