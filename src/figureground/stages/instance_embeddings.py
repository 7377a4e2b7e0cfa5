"""What the pseudo-labels of a training are like: one vector for each, made once and kept beside the run."""

import base64
import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from figureground.config import Config
from figureground.data.coco import ImageAnnotations
from figureground.data.images import decode
from figureground.data.label_file import LabelFile
from figureground.errors import ImageError
from figureground.stages.exemplar_pool import identify, make_embedder
from figureground.stages.instance_features import InstanceEmbedder, View, pack
from figureground.stages.labeller import BackboneConfig, is_learned
from figureground.storage.atomic import make_folder, writing
from figureground.storage.shards import Shard

_SIZES: dict[View, int] = {"crop": 224, "image": 480}
# Images that a kill can cost at most.
_SHARD = 32


class EmbedderConfig(Config):
    """How an instance is described by a vector."""

    backbone: BackboneConfig = BackboneConfig()
    view: View | None = Field(
        default=None,
        description="What the backbone sees: the `crop` of each instance, or the `image`; none: crop where it is "
        "learned, else image, for `handcrafted` tells patches by their surroundings (FreeSOLO: image).",
    )
    size: int | None = Field(
        default=None,
        ge=16,
        le=4096,
        description="Side in px of the square a crop is brought to, or of the area of the image; none: 224 and 480.",
    )

    def seen(self) -> tuple[View, int]:
        """View and size in force."""
        view = self.view or ("crop" if is_learned(self.backbone) else "image")
        return view, self.size or _SIZES[view]

    def identity(self) -> str:
        """What vectors must have in common to be compared."""
        return identify(self.backbone, *self.seen())


def embed_labels(labels: LabelFile, root: Path, config: EmbedderConfig, device: str, path: Path) -> None:
    """Describe every mask of a file by a vector, unless that is done.

    The vectors come into a ``.npy`` with one row of half precision for each annotation, image by image in the order of
    the file; zeros for those of images that cannot be looked at. Can be killed at any time and called again.

    Args:
        labels: The masks.
        root: Folder of their images.
        config: How.
        device: Where to compute.
        path: Where to; of a name that no other masks and no other ``config`` have. Its folder is made.

    Raises:
        UsageError: If there is no such backbone.
        WeightsError: If its weights cannot be had.
        RunError: If the folder cannot be written.
    """
    if path.exists():
        return
    embedder = make_embedder(config.backbone, *config.seen(), device)
    # Beside the file, until it is there.
    parts = path.with_suffix("")
    make_folder(parts)
    shards = [Shard(parts, index, path.stem) for index in range(-(-len(labels) // _SHARD))]
    for shard in shards:
        if shard.summary() is None:
            places = range(shard.index * _SHARD, min(len(labels), (shard.index + 1) * _SHARD))
            shard.write([_look(labels[place], root, embedder) for place in places], {})
    header: Any = {"descr": "<f2", "fortran_order": False, "shape": (labels.annotations, embedder.backbone.width)}
    with writing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for record in (record for shard in shards for record in shard.read()):
            file.write(base64.b64decode(record["vectors"]) or bytes(2 * embedder.backbone.width * record["count"]))
    shutil.rmtree(parts, ignore_errors=True)


def _look(labelled: ImageAnnotations, root: Path, embedder: InstanceEmbedder) -> dict[str, Any]:
    """How many masks an image has, and their vectors; empty if it cannot be looked at, which training will say."""
    masks = [entry["segmentation"] for entry in labelled["annotations"]]
    vectors = ""
    if masks:
        with contextlib.suppress(ImageError):
            pixels, size = decode(root / labelled["file_name"])
            if size == (labelled["height"], labelled["width"]):
                vectors = pack(embedder.embed(pixels, masks))
    return {"count": len(masks), "vectors": vectors}
