"""Patch features on this machine: timm's own forward pass, our float32 and our bfloat16, side by side.

Random weights, one image. The variants take turns in one process, so that what else the machine does meets all of them.

    python -m benchmarks.bench_backbones            # writes results/bench/backbones.csv
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.record import write_rows
from figureground.backbones import CATALOGUE, Row, find
from figureground.backbones.vit import ViT, define

DEFAULT = ("dino_s16", "dino_b16", "dinov2_s14", "dinov3_s16", "dino_s8", "dino_b8")
TAU = 0.15  # MaskCut's threshold of the cosine between keys


def random_state(row: Row) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in define(row).state_dict().items():
        values = torch.randn(value.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif values.ndim == 1:
            values = 0.02 * values
        elif name.endswith("weight"):
            values = values / value[0].numel() ** 0.5
        else:
            values = 0.2 * values
        state[name] = values
    return state


def random_image(size: int) -> Tensor:
    """Smooth blobs with noise: neighbouring patches are alike, as in a photograph."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 12, 12, generator=generator)
    noise = 0.1 * torch.rand(1, 3, size, size, generator=generator)
    return (functional.interpolate(coarse, (size, size), mode="bicubic") + noise).clamp(0, 1)


def naive(row: Row, state: dict[str, Tensor], image: Tensor) -> Callable[[], Tensor]:
    """The whole of timm's forward pass, with the published codes' hook on the last qkv layer."""
    import timm

    model: Any = timm.create_model(str(row.timm_id), pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    model.load_state_dict(state)
    kept: list[Tensor] = []
    model.blocks[-1].norm1.register_forward_hook(lambda *args: kept.append(args[-1]))
    normed = (image - torch.tensor(row.mean).view(3, 1, 1)) / torch.tensor(row.std).view(3, 1, 1)
    attention = model.blocks[-1].attn

    @torch.no_grad()
    def keys() -> Tensor:
        kept.clear()
        model.forward_features(normed)
        bias = None if attention.qkv.bias is None else attention.qkv.bias.chunk(3)[1]
        return functional.linear(kept[0], attention.qkv.weight.chunk(3)[1], bias)[0, model.num_prefix_tokens :]

    return keys


def ours(row: Row, state: dict[str, Tensor], image: Tensor, precision: str) -> Callable[[], Tensor]:
    model = define(row)
    model.load_state_dict(state, assign=True)
    backbone = ViT(model, row, "keys", precision)
    return lambda: backbone(image).values[0].flatten(0, 1)


def edges(keys: Tensor) -> Tensor:
    # Centred: with random weights all keys point the same way, and no threshold would split them.
    unit = functional.normalize(keys - keys.mean(dim=0), dim=1)
    return unit @ unit.T > TAU


def measure(row: Row, size: int, repeats: int) -> list[dict[str, object]]:
    state, image = random_state(row), random_image(size)
    variants = {
        "timm_fp32": naive(row, state, image),
        "fp32": ours(row, state, image, "fp32"),
        "bf16": ours(row, state, image, "bf16"),
    }
    keys = {name: run() for name, run in variants.items()}  # warms up, too
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - started))
    # Against our own float32: timm resamples positions by another rule (DINO, DINOv2).
    exact, exact_edges = keys["fp32"], edges(keys["fp32"])
    return [
        {
            "backbone": row.name,
            "image_px": size,
            "patches": len(exact),
            "variant": name,
            "min_ms": round(min(times[name])),
            "median_ms": round(statistics.median(times[name])),
            "speedup": round(min(times["timm_fp32"]) / min(times[name]), 2),
            "key_error": f"{float((keys[name] - exact).abs().max() / exact.abs().max()):.1e}",
            "edge_share": f"{float(exact_edges.float().mean()):.3f}",
            "flipped_edges": f"{float((edges(keys[name]) != exact_edges).float().mean()):.1e}",
        }
        for name in variants
    ]


def main() -> None:
    import timm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append", choices=[row.name for row in CATALOGUE.values() if row.learned])
    parser.add_argument("--size", type=int, default=480, help="side of the image, in pixels, cut to whole patches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.backbone or DEFAULT:
        row = find(name)
        for line in measure(row, args.size // row.patch_size * row.patch_size, args.repeats):
            print(*line.values(), sep="\t", flush=True)
            rows.append(line | {"threads": args.threads, "timm": timm.__version__})
    print(write_rows("bench/backbones", rows))


if __name__ == "__main__":
    main()
