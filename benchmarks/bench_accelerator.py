"""How much of the rate of the bare vision transformer `label` keeps: MaskCut, three rounds, with the dense CRF.

    python -m benchmarks.bench_accelerator              # S/16, S/8, B/8 at 480 px; writes results/bench/accelerator.csv
    python -m benchmarks.bench_accelerator --device cpu --backbone dino_s16 --size 96 --images 4 --batch-size 2

Carries no data: photographs are drawn, weights are random. The images are decoded, resized, described, cut, refined and
encoded exactly as in a run, as one shard of JPEGs on disk. The bare rates are forward passes over a batch that lies on
the device already: timm's own model with all parameters in the precision, and this project's backbone. Times of
`decode` and `write` are those of all threads together, on the side of the rest. `iou` compares the masks of the first
images with those found one by one on the CPU in float32.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.random_vit import centred_state, write_state
from benchmarks.record import write_rows
from figureground.backbones import Row, find
from figureground.data.images import decode
from figureground.data.resize import to_tensor
from figureground.errors import ImageError
from figureground.stages.batching import label_in_batches
from figureground.stages.labeller import BackboneConfig, Labeller, LabellerConfig

BACKBONES = ("dino_s16", "dino_s8", "dino_b8")
# The two commonest sizes of ImageNet, (width, height).
SIZES_WH = ((500, 375), (375, 500))


def draw(index: int) -> Image.Image:
    """A few blurred discs on a gradient, with noise."""
    generator = np.random.default_rng(index)
    width, height = SIZES_WH[index % len(SIZES_WH)]
    ramp = np.linspace(0, 80, width)[None, :, None] + generator.integers(0, 120, 3)
    image = Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, r = generator.integers((0, 0, 30), (width, height, 120)).tolist()
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tuple(generator.integers(0, 256, 3).tolist()))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(2))).astype(float)
    return Image.fromarray((blurred + generator.normal(0, 6, blurred.shape)).clip(0, 255).astype(np.uint8))


def rate(run: Callable[[], object], images: int, device: torch.device, at_least_s: float = 2.0) -> float:
    """Images a second; the first two calls do not count."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    run()
    wait()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < at_least_s:
        run()
        wait()
        calls += 1
    return images * calls / (time.perf_counter() - start)


def bare_timm(row: Row, state: dict[str, torch.Tensor], batch: torch.Tensor, precision: str) -> Callable[[], object]:
    """The forward pass of the whole of timm's model."""
    model: Any = timm.create_model(str(row.timm_id), pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    model.load_state_dict(state)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = model.to(batch.device, dtype)
    images = batch.to(dtype)

    @torch.inference_mode()
    def forward() -> object:
        return model.forward_features(images)

    return forward


def measure(row: Row, files: list[tuple[Path, str]], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row: bare rates, the rate of the whole, and its split."""
    device = torch.device(args.device)
    state = centred_state(row, [to_tensor(decode(path)[0]) for path, _ in files[:8]])
    weights = write_state(state, folder / f"{row.name}.safetensors")

    def labeller(device: str, precision: Any, batch_size: int) -> Labeller:
        backbone = BackboneConfig(name=row.name, weights=str(weights), precision=precision)
        return Labeller(
            LabellerConfig(method="maskcut", backbone=backbone, size=args.size, device=device, batch_size=batch_size)
        )

    ours = labeller(args.device, args.precision, args.batch_size)
    height, width = ours.fitted_size((SIZES_WH[0][1], SIZES_WH[0][0]))
    batch = torch.rand(args.batch_size, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    bare = rate(bare_timm(row, state, batch, args.precision), len(batch), device)
    backbone = rate(lambda: ours.backbone(batch), len(batch), device)
    # Two batches of each shape warm up.
    for _ in label_in_batches(ours, files[: 4 * args.batch_size]):
        pass
    ours.seconds.clear()
    start = time.perf_counter()
    records = list(label_in_batches(ours, files))
    seconds = time.perf_counter() - start
    masks = sum(record["instances"] for record in records if not isinstance(record, ImageError))
    whole = len(files) / seconds
    line = {
        "backbone": row.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else args.device,
        "precision": args.precision,
        "image_px": args.size,
        "batch_size": args.batch_size,
        "threads": torch.get_num_threads(),
        "images": len(files),
        "masks": masks,
        "bare_timm_images_per_s": f"{bare:.4g}",
        "bare_backbone_images_per_s": f"{backbone:.4g}",
        "images_per_s": f"{whole:.4g}",
        "share_of_bare": round(whole / bare, 3),
        **{f"{part}_ms": round(1000 * spent / len(files), 3) for part, spent in sorted(ours.seconds.items())},
    }
    return line | overlaps(ours, labeller("cpu", "fp32", 1), files[: args.check])


def overlaps(there: Labeller, here: Labeller, files: list[tuple[Path, str]]) -> dict[str, Any]:
    """IoU of the masks of each image, in their order, with those found on the CPU in float32; 0 for a missing one."""
    if not files:
        return {}
    pairs = [decode(path, enough=here.fitted_size) for path, _ in files]
    found = there.many([pixels for pixels, _ in pairs], [size for _, size in pairs])
    values: list[float] = []
    for pair, theirs in zip(pairs, found, strict=True):
        own = here(*pair)
        assert not isinstance(theirs, ImageError), theirs
        values += [0.0] * abs(len(own) - len(theirs))
        for left, right in zip(own.masks, theirs.masks, strict=False):
            values.append(float((left & right).sum() / (left | right).sum()))
    if not values:
        return {}
    return {"iou_mean": round(statistics.mean(values), 4), "iou_median": round(statistics.median(values), 4)}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append", help=f"default: {', '.join(BACKBONES)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--check", type=int, default=4, help="images compared with the CPU")
    parser.add_argument("--table", default="bench/accelerator", help="under results/")
    args = parser.parse_args(arguments)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for index in range(args.images):
            path = Path(folder) / f"{index:05d}.jpg"
            draw(index).save(path, quality=90)
            files.append((path, path.name))
        for name in args.backbone or BACKBONES:
            lines.append(measure(find(name), files, args, Path(folder)))
            print(lines[-1], flush=True)
    print(write_rows(args.table, lines))
    return lines


if __name__ == "__main__":
    main()
