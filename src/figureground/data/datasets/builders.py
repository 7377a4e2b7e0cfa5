"""Which builder reads which format."""

import os
from collections.abc import Callable
from pathlib import Path

from figureground.data.datasets import class_maps, coco, davis, kitti, lvis, objects365, openimages, saliency_masks, voc
from figureground.data.datasets.catalogue import DataSet, Format, check_layout
from figureground.data.datasets.source import Source
from figureground.errors import UsageError

BUILDERS: dict[Format, Callable[[DataSet, Path], Source]] = {
    "coco": coco.build,
    "lvis": lvis.build,
    "objects365": objects365.build,
    "voc": voc.build,
    "kitti": kitti.build,
    "openimages": openimages.build,
    "saliency_masks": saliency_masks.build,
    "davis": davis.build,
    "voc_classes": class_maps.build_voc,
    "coco_stuff": class_maps.build_coco_stuff,
}


def open_source(data_set: DataSet, root: str | os.PathLike[str]) -> Source:
    """The original annotations of a data set in a folder.

    Raises:
        UsageError: If a path is missing, a file of annotations is damaged as a whole, or there is no image.
    """
    folder = Path(root)
    check_layout(data_set, folder)
    try:
        source = BUILDERS[data_set.format](data_set, folder)
    except OSError as error:
        raise UsageError(f"{error.filename or folder} cannot be read: {error.strerror or error}.") from None
    if not source.names:
        raise UsageError(f"{data_set.title}: no image is listed in {folder}.", f"Example: {data_set.example}")
    return source
