"""A training step of our Mask R-CNN and of torchvision's, side by side: where its time goes.

Both are a ResNet-50 with a pyramid and random weights, with as many regions, on the same pictures of coco128 with their
true masks. They take turns in one process, so that what else the machine does meets both.

    python -m benchmarks.bench_train                     # writes results/bench/train.csv
    python -m benchmarks.bench_train --device cuda --precision bf16 --batch-size 16 --short-side 800

`data` is decoding and augmentation in this process, `copy_paste` comes after it on the CPU; both are the same for both,
and not in `images_per_s`.
"""

import argparse
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.record import SHARED, write_rows
from figureground import detectors
from figureground.data.augment import AugmentConfig
from figureground.data.copy_paste import CopyPasteConfig
from figureground.data.pseudo_labels import PseudoLabelConfig, PseudoLabels
from figureground.stages.detector_training import Batch, Examples, OptimiserConfig, make_optimiser, to_device

Losses = Callable[[list[Tensor], list[Any]], dict[str, Tensor]]


def ours(norm: str) -> tuple[nn.Module, Losses]:
    config = detectors.configure("mask_rcnn", backbone={"norm": norm}, rpn={"train": 2000, "nms": 0.7})
    model = detectors.create(config)
    draws = torch.Generator().manual_seed(0)
    return model, lambda images, targets: model(images, targets, draws)


def torchvisions(short_side: int, long_side: int) -> tuple[nn.Module, Losses]:
    """Given pictures of the size it asks for, it only normalises and pads them."""
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=short_side, max_size=long_side
    )

    def losses(images: list[Tensor], targets: list[Any]) -> dict[str, Tensor]:
        return model(images, [{**target, "masks": target["masks"].byte()} for target in targets])

    return model, losses


class Contender:
    """A model and the times of its steps."""

    def __init__(self, model: nn.Module, losses: Losses, args: argparse.Namespace) -> None:
        self.model, self.losses, self.args = model.to(args.device).train(), losses, args
        # The same optimiser; it asks for nothing but parameters and norms.
        self.optimiser: Any = make_optimiser(self.model, OptimiserConfig())  # pyright: ignore[reportArgumentType]
        self.forward_s: list[float] = []
        self.update_s: list[float] = []

    def step(self, batch: Batch) -> None:
        """Take one and note how long its parts took."""
        images, targets, _ = to_device(batch, self.args.device)
        start = self.now()
        with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.precision == "bf16"):
            losses = self.losses([image.float() / 255 for image in images], targets)
            total = torch.stack(list(losses.values())).sum()
        forward = self.now()
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.forward_s.append(forward - start)
        self.update_s.append(self.now() - forward)

    def now(self) -> float:
        """The time once the device is done."""
        if self.args.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def load_examples(folder: Path, args: argparse.Namespace) -> Examples:
    with tarfile.open(SHARED / "data" / "eval" / "coco128.tar") as archive:
        archive.extractall(folder, filter="data")
    augmentation = AugmentConfig(short_sides=(args.short_side,), max_side=args.long_side)
    labels = PseudoLabels(
        folder / "annotations.json",
        folder / "images",
        PseudoLabelConfig(max_objects=10),
        lambda *_: None,
        augmentation.enough,
    )
    return Examples(labels, augmentation, CopyPasteConfig(), seed=0, paste_later=True)


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    contenders = {
        "figureground": Contender(*ours("batch"), args),
        "torchvision": Contender(*torchvisions(args.short_side, args.long_side), args),
    }
    data_s, paste_s = [], []
    with tempfile.TemporaryDirectory() as name:
        examples = load_examples(Path(name), args)
        # The first step warms up.
        for step in range(args.steps + 1):
            start = time.perf_counter()
            places = range(step * args.batch_size, (step + 1) * args.batch_size)
            batch = examples.collate([examples(place % len(examples.labels), place) for place in places])
            made = time.perf_counter()
            batch = examples.paste(batch)
            data_s.append(made - start)
            paste_s.append(time.perf_counter() - made)
            for contender in contenders.values():
                contender.step(batch)
    rows = []
    for name, contender in contenders.items():
        forward_s, update_s = _median(contender.forward_s), _median(contender.update_s)
        row = {"model": name, "data_s": _median(data_s), "copy_paste_s": _median(paste_s)}
        row |= {"forward_s": forward_s, "backward_update_s": update_s}
        rows.append({**row, "images_per_s": round(args.batch_size / (forward_s + update_s), 2)})
    return rows


def _median(seconds: list[float]) -> float:
    return round(statistics.median(seconds[1:]), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--short-side", type=int, default=480)
    parser.add_argument("--long-side", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args)
    for row in rows:
        print(row, flush=True)
    facts = {**vars(args), "torchvision_version": torchvision.__version__}
    if args.device == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name()
    print(write_rows("bench/train", [{**row, **facts} for row in rows]))


if __name__ == "__main__":
    main()
