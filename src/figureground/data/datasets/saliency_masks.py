"""Saliency sets: one mask file an image, of the same name (DUTS, ECSSD, DUT-OMRON).

Reference:
    Wang et al., CVPR 2017 (DUTS); Shi et al., PAMI 2016 (ECSSD); Yang et al., CVPR 2013 (DUT-OMRON). Masks are grey,
    some with soft borders: above 127 is foreground.
"""

import os
from pathlib import Path

import numpy as np

from figureground.data.datasets.catalogue import DataSet
from figureground.data.datasets.source import Source, TruthImage, check_size, foreground, image_size, opened
from figureground.data.listing import EXTENSIONS
from figureground.errors import ImageError

_THRESHOLD = 127


def build(data_set: DataSet, root: Path) -> Source:
    """Every image of the folder."""
    folder, masks = root / data_set.image_root, root / data_set.annotations[0]
    names = _image_names(folder)
    mask_names = {Path(name).stem: name for name in _image_names(masks)}

    def read(index: int) -> TruthImage:
        stem = Path(names[index]).stem
        if stem not in mask_names:
            raise ImageError(f"{masks} has no mask for {names[index]}.")
        height, width = size = image_size(folder, names[index])
        path = masks / mask_names[stem]
        with opened(path) as image:
            mask = np.asarray(image.convert("L")) > _THRESHOLD
        check_size((mask.shape[0], mask.shape[1]), size, str(path))
        return TruthImage(file_name=names[index], height=height, width=width, objects=foreground(mask))

    return Source(names, read)


def _image_names(folder: Path) -> list[str]:
    names = (name for name in os.listdir(folder) if not name.startswith("."))
    return sorted(name for name in names if Path(name).suffix.lower() in EXTENSIONS)
