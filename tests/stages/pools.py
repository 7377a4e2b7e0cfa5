"""Pools of exemplars as `figureground exemplars` leaves them, made of labelled pictures."""

import json
from pathlib import Path

from figureground.data.images import decode
from figureground.data.label_file import LabelFile
from figureground.ops.rle import decode as decode_masks
from figureground.stages.exemplar_pool import PICTURES, POOL_FILE, cut_out, identify
from figureground.stages.instance_embeddings import EmbedderConfig


def write_pool(labels: Path, folder: Path, config: EmbedderConfig | None = None) -> Path:
    """Write a pool with a category for each mask of a run; return its folder."""
    config = config or EmbedderConfig()
    count = 0
    for labelled in LabelFile(labels / "annotations.json"):
        pixels, _ = decode(labels.parent / "photos" / labelled["file_name"])
        for mask in decode_masks([entry["segmentation"] for entry in labelled["annotations"]]):
            (folder / PICTURES / f"{count:02d}").mkdir(parents=True)
            (folder / PICTURES / f"{count:02d}" / "one.png").write_bytes(cut_out(pixels, mask.numpy()))
            count += 1
    view, size = config.seen()
    known = {
        "backbone": identify(config.backbone, view, size),
        "embedder": {"backbone": config.backbone.model_dump(mode="json"), "view": view, "size": size},
        "pictures": {},
    }
    (folder / POOL_FILE).write_text(json.dumps(known))
    return folder
