"""The most memory `label` takes for one enormous photograph of each kind: MaskCut at 480 px with the dense CRF.

    python -m benchmarks.bench_memory                     # 169 million pixels, dino_s8; writes results/bench/memory.csv

Pillow refuses what is larger than 179 million pixels. Each kind has a process of its own; the base is what that process
holds once the backbone is loaded, most of it libraries.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

_KINDS = ("rgb", "rgba", "grey16", "turned")


def draw(kind: str, side: int, path: Path) -> None:
    """Write a photograph, in a process of its own so that its memory is not counted."""
    grey = Image.radial_gradient("L").resize((side, side))
    exif = Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6
    if kind == "grey16":
        import numpy as np

        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    else:
        image = Image.merge("RGBA" if kind == "rgba" else "RGB", [grey] * (4 if kind == "rgba" else 3))
    image.save(path, compress_level=1, exif=exif)


def peak_mb() -> int:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def label(backbone: str, weights: Path, image: Path) -> dict[str, Any]:
    """Find the objects of the photograph as `label` does."""
    from figureground.data.coco import annotate
    from figureground.data.images import decode
    from figureground.stages.labeller import BackboneConfig, Labeller, LabellerConfig

    choice = BackboneConfig(name=backbone, weights=str(weights), precision="auto")
    labeller = Labeller(LabellerConfig(method="maskcut", backbone=choice))
    figures = {"base_mb": peak_mb()}
    pixels, size = decode(image, enough=labeller.fitted_size)
    figures["decoded_mb"] = peak_mb()
    found = labeller(pixels, size)
    figures["found_mb"] = peak_mb()
    masks = len(annotate(image.name, size, found)["annotations"])
    return {**figures, "peak_mb": peak_mb(), "masks": masks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="dino_s8")
    parser.add_argument("--side", type=int, default=13_000)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        what, *rest = args.worker
        if what == "draw":
            draw(rest[0], int(rest[1]), Path(rest[2]))
        else:
            print(json.dumps(label(rest[0], Path(rest[1]), Path(rest[2]))))
        return

    import torch
    from torch.nn import functional

    from benchmarks.random_vit import centred_state, write_state
    from benchmarks.record import write_rows
    from figureground.backbones import find

    def in_a_process(*words: str) -> str:
        command = [sys.executable, "-m", "benchmarks.bench_memory", "--worker", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
        smooth = functional.interpolate(coarse, size=(224, 224), mode="bicubic").clamp(0, 1)
        weights = write_state(centred_state(find(args.backbone), [smooth]), Path(folder) / "weights.safetensors")
        for kind in _KINDS:
            path = Path(folder) / f"{kind}.png"
            in_a_process("draw", kind, str(args.side), str(path))
            figures = json.loads(in_a_process("label", args.backbone, str(weights), str(path)))
            rows.append({"backbone": args.backbone, "image": f"{kind} {args.side}x{args.side}", **figures})
            print(rows[-1], flush=True)
    print(write_rows("bench/memory", rows))


if __name__ == "__main__":
    main()
