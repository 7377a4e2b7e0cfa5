"""How well K-means sorts true objects into their classes: raw features, and MaskContrast's before and after training.

Objects of coco128 are looked at inside their masks, those of voc100 inside their boxes, for it has no masks: what
is measured is the embedding, not the search for objects. The mean of five seeds of K-means, the lowest and highest.

    figureground label PHOTOS --out RUN && figureground semantic train RUN --recipe small --out SEGMENTER
    python -m benchmarks.bench_semantic SEGMENTER                     # writes results/semantic.csv
"""

import argparse
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.record import SHARED, write_rows
from figureground import backbones
from figureground.data.images import load_image
from figureground.data.truth import read_truth
from figureground.evaluation.clusters import normalised_mutual_information, purity
from figureground.segmenters import checkpoint
from figureground.segmenters.maskcontrast import Segmenter
from figureground.stages.cluster_truth import TruthClasses
from figureground.stages.grouping import group
from figureground.stages.instance_features import InstanceEmbedder, View
from figureground.structures import PatchFeatures

CLUSTERS = 20
SEEDS = 5


class Pixels:
    """A segmenter as a backbone: its embedding of each pixel, at unit length."""

    patch_size = 16

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter.eval()

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> PatchFeatures:
        """See `figureground.backbones.load`."""
        values = functional.normalize(self.segmenter(images)[0], dim=1).permute(0, 2, 3, 1)
        return PatchFeatures(values, 1, (images.shape[2], images.shape[3]))


def main() -> None:
    """Embed, cluster, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("segmenter", type=Path, help="run of `figureground semantic train`")
    arguments = parser.parse_args()
    trained = checkpoint.load(arguments.segmenter)
    torch.manual_seed(0)
    untrained = Segmenter(trained.config)
    embedders: dict[str, tuple[Any, View, int]] = {
        "handcrafted, image": (backbones.load("handcrafted"), "image", 480),
        "handcrafted, crop": (backbones.load("handcrafted"), "crop", 224),
        "embedded ViT, tokens, crop": (backbones.load("embedded", features="tokens"), "crop", 128),
        "embedded ViT, values, crop": (backbones.load("embedded", features="values"), "crop", 128),
        "MaskContrast's network, untrained, image": (Pixels(untrained), "image", 192),
        "MaskContrast's network, untrained, crop": (Pixels(untrained), "crop", 128),
        "MaskContrast, trained, image": (Pixels(trained), "image", 192),
        "MaskContrast, trained, crop": (Pixels(trained), "crop", 128),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("coco128", "voc100"):
            with tarfile.open(SHARED / "data" / "eval" / f"{name}.tar") as archive:
                archive.extractall(Path(folder) / name, filter="data")
            for what, (backbone, view, size) in embedders.items():
                vectors, classes = embed(Path(folder) / name, InstanceEmbedder(backbone, view, size, "cpu"))
                row = {"set": name, "embedding": what, "objects": len(classes), "clusters": CLUSTERS}
                row |= measure(vectors, classes)
                print(row, flush=True)
                rows.append(row)
    write_rows("semantic", rows)


def embed(folder: Path, embedder: InstanceEmbedder) -> tuple[np.ndarray, list[str]]:
    """Vector and class of every true object that has a class."""
    truth = read_truth(folder / "annotations.json")
    named = TruthClasses(folder / "annotations.json")
    vectors, classes = [], []
    for image in truth.images:
        objects = [each for each in truth.of(image) if not each.crowd and named.of(each) is not None]
        if objects:
            masks = [each.mask or boxed(each.bbox, image.height, image.width) for each in objects]
            vectors.append(embedder.embed(load_image(folder / "images" / image.file_name), masks))
            classes += [str(named.of(each)) for each in objects]
    return np.concatenate(vectors), classes


def boxed(bbox: Any, height: int, width: int) -> Any:
    """A box as a mask."""
    from pycocotools import mask as coco_mask

    x, y, w, h = bbox
    mask = np.zeros((height, width), np.uint8)
    mask[int(y) : max(int(y) + 1, round(y + h)), int(x) : max(int(x) + 1, round(x + w))] = 1
    rle: Any = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def measure(vectors: np.ndarray, classes: list[str]) -> dict[str, float]:
    """Purity and NMI in per cent: the mean over seeds, the lowest and the highest."""
    found = [group(vectors, CLUSTERS, seed=seed).clusters.tolist() for seed in range(SEEDS)]
    result = {}
    for name, score in (("purity", purity), ("nmi", normalised_mutual_information)):
        scores = [100 * score(clusters, classes) for clusters in found]
        for key, value in ((name, np.mean(scores)), (f"{name}_low", min(scores)), (f"{name}_high", max(scores))):
            result[key] = round(float(value), 2)
    return result


if __name__ == "__main__":
    main()
