"""`label` with MaskCut against the published procedure, end to end, in one process on the same photographs.

    python -m benchmarks.bench_published              # dino_s8, dino_s16; writes results/bench/published.csv
    python -m benchmarks.bench_published --backbone dino_s8 --images 2

The published procedure is written here plainly, from the paper's text and its code's description: the photograph made a
square, float32 features by the whole of timm's forward pass, then three times over the dense float64 problem
`scipy.linalg.eigh(D - W, D)`, the found patches zeroed between, and last a dense CRF for each mask by itself. Its CRF
is this project's (the published one, pydensecrf, takes two to three times as long). Both sides share random weights
and take turns image by image, so that what else the machine does meets both. The first image, which warms up, does
not count.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from scipy import ndimage
from scipy.linalg import eigh
from skimage import data
from torch import Tensor
from torch.nn import functional

from benchmarks.random_vit import centred_state, write_state
from benchmarks.record import write_rows
from figureground.backbones import Row, find
from figureground.data.coco import annotate
from figureground.data.images import decode
from figureground.data.resize import to_tensor
from figureground.refine import dense_crf
from figureground.stages.labeller import BackboneConfig, Labeller, LabellerConfig

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle", "retina")
TAU, EPS, ROUNDS = 0.15, 1e-5, 3


@dataclass
class Clock:
    """Seconds of each part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of a block."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


class Published:
    """The published MaskCut, one photograph after the other.

    Reference:
        Wang et al., Cut and learn, CVPR 2023, section 3.2 and its code: float32 keys of the last block, tau 0.15,
        three rounds, float64 `eigh` with a dense degree matrix, CRF, holes filled, IoU at least 0.5.
    """

    def __init__(self, row: Row, state: dict[str, Tensor], size: int) -> None:
        self.row, self.size, self.clock = row, size // row.patch_size * row.patch_size, Clock()
        self.model: Any = timm.create_model(
            str(row.timm_id), pretrained=False, num_classes=0, dynamic_img_size=True
        ).eval()
        self.model.load_state_dict(state)
        self.kept: list[Tensor] = []
        self.model.blocks[-1].attn.qkv.register_forward_hook(lambda *args: self.kept.append(args[-1]))

    @torch.no_grad()
    def __call__(self, file: bytes) -> int:
        """The number of masks found."""
        with self.clock.timed("decode"):
            whole = Image.open(io.BytesIO(file)).convert("RGB")
            image = np.asarray(whole.resize((self.size, self.size), Image.Resampling.LANCZOS))
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.row.mean, self.row.std))
            batch = (to_tensor(image) - mean) / std
        with self.clock.timed("features"):
            self.kept.clear()
            self.model.forward_features(batch)
            prefix = self.model.num_prefix_tokens
            keys = self.kept[0].chunk(3, dim=-1)[1][0, prefix:].clone()
        with self.clock.timed("propose"):
            masks = self._cut(keys)
        with self.clock.timed("refine"):
            masks = [refined for mask in masks if (refined := self._refine(image, mask)) is not None]
        with self.clock.timed("write"):
            for mask in masks:
                grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(whole.size)
                _encode(np.asarray(grey) > 127)
        return len(masks)

    def _cut(self, keys: Tensor) -> list[np.ndarray]:
        side = self.size // self.row.patch_size
        taken = np.zeros((side, side), dtype=bool)
        previous = taken
        masks = []
        for number in range(ROUNDS):
            keys[torch.from_numpy(taken.flatten())] = 0
            unit = functional.normalize(keys, dim=1)
            weights = np.where((unit @ unit.T).numpy() > TAU, 1.0, EPS)
            degree = np.diag(weights.sum(1))
            _, vectors = eigh(degree - weights, degree, subset_by_index=[1, 2])
            mask = _figure(vectors[:, 0].reshape(side, side))
            union = (mask | previous).sum()
            if number > 0 and (mask.mean() <= 0.01 or (mask & previous).sum() > 0.5 * union):
                mask = np.zeros_like(mask)
            previous = mask
            if (mask & ~taken).any():
                masks.append(mask & ~taken)
            taken = taken | mask
        return masks

    def _refine(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        large = np.kron(mask, np.ones((self.row.patch_size,) * 2, dtype=bool))
        refined: Any = ndimage.binary_fill_holes((dense_crf(image, large) > 0.5).numpy())
        return refined if (refined & large).sum() >= 0.5 * (refined | large).sum() else None


def _figure(vector: np.ndarray) -> np.ndarray:
    """The published choice of a side by its corners, and the component of its seed."""
    side = vector > vector.mean()
    seed = np.abs(vector).argmax()
    if side[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3 or not side.flat[seed]:
        side, vector = ~side, -vector
    components: Any = ndimage.label(side)
    return side & (components[0] == components[0].flat[vector.argmax()])


def _encode(mask: np.ndarray) -> None:
    from pycocotools import mask as coco_mask

    coco_mask.encode(np.asfortranarray(mask[:, :, None].astype(np.uint8)))


class Ours:
    """What `label` does with a photograph, without the run's folder."""

    def __init__(self, row: Row, weights: Path, size: int, precision: Any, preset: str) -> None:
        backbone = BackboneConfig(name=row.name, weights=str(weights), precision=precision)
        self.labeller = Labeller(LabellerConfig(method="maskcut", preset=preset, backbone=backbone, size=size))
        self.clock = Clock(self.labeller.seconds)

    def __call__(self, file: bytes) -> int:
        """The number of masks found."""
        with self.labeller.timed("decode"):
            pixels, size = decode(file, enough=self.labeller.fitted_size)
        found = self.labeller(pixels, size)
        with self.labeller.timed("write"):
            return len(annotate("photograph", size, found)["annotations"])


def photograph(name: str) -> bytes:
    """A JPEG of the size of ImageNet's, about 500 x 375."""
    pixels: Any = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    image = Image.fromarray(pixels[..., :3])
    image.thumbnail((500, 500))
    file = io.BytesIO()
    image.save(file, "jpeg", quality=90)
    return file.getvalue()


def measure(row: Row, files: list[bytes], size: int, folder: Path) -> list[dict[str, Any]]:
    """One row a variant, all on the same files with the same weights."""
    tensors = [to_tensor(decode(file)[0]) for file in files]
    state = centred_state(row, tensors)
    weights = write_state(state, folder / f"{row.name}.safetensors")
    variants: dict[str, Published | Ours] = {
        "published procedure": Published(row, state, size),
        "figureground reference fp32": Ours(row, weights, size, "fp32", "reference"),
        "figureground default fp32": Ours(row, weights, size, "fp32", "default"),
        "figureground default bf16": Ours(row, weights, size, "bf16", "default"),
    }
    seconds, masks = dict.fromkeys(variants, 0.0), dict.fromkeys(variants, 0)
    for number, file in enumerate([files[0], *files]):
        for name, run in variants.items():
            start = time.perf_counter()
            found = run(file)
            if number == 0:
                run.clock.seconds.clear()
                continue
            seconds[name] += time.perf_counter() - start
            masks[name] += found
    rows = []
    for name, run in variants.items():
        rows.append(
            {
                "backbone": row.name,
                "image_px": size,
                "threads": torch.get_num_threads(),
                "variant": name,
                "images": len(files),
                "images_per_s": f"{len(files) / seconds[name]:.4g}",
                "ratio": round(seconds["published procedure"] / seconds[name], 1),
                "masks": masks[name],
                **{f"{part}_ms": round(1000 * spent / len(files), 1) for part, spent in run.clock.seconds.items()},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append", help="default: dino_s8 and dino_s16")
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--images", type=int, default=len(PHOTOGRAPHS), choices=range(1, len(PHOTOGRAPHS) + 1))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    files = [photograph(name) for name in PHOTOGRAPHS[: args.images]]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.backbone or ("dino_s8", "dino_s16"):
            for line in measure(find(name), files, args.size, Path(folder)):
                print(*line.values(), sep="\t", flush=True)
                rows.append(line)
    print(write_rows("bench/published", rows))


if __name__ == "__main__":
    main()
