"""The learning effect: detectors trained on pseudo-labels, against the pseudo-labels, on pictures with a truth.

Variants: without DropLoss, with DropLoss, and one round of self-training on top of each. All begin with random weights,
see the same pictures and take the same steps; the truth is looked at only to score. Can be stopped and run again.

    python -m benchmarks.bench_learning RUN_OF_LABEL --work FOLDER [--steps 600] [--only drop_loss]
"""

import argparse
import tarfile
from pathlib import Path
from typing import Any

from benchmarks.record import SHARED, write_rows
from figureground.data.merge import MergeConfig, merge_files
from figureground.data.truth import read_predictions, read_truth
from figureground.evaluation import paired
from figureground.evaluation.bootstrap import Estimate
from figureground.stages import label, predict, train
from figureground.training.loop import StepReport

SETS = ("coco128", "voc100")
MEASURES = ("corloc", "box_ap50", "box_ap", "box_ar10", "mask_ap50", "mask_ap", "mask_ar10")
# That of training, and a larger one, at which objects are larger than any that were learned from.
SIDES = (128, 640)


def main() -> None:
    """Train, predict, score, write ``results/learning.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, help="run of `figureground label` to learn from")
    parser.add_argument("--work", type=Path, required=True, help="folder of the trainings; give the same to go on")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", choices=("plain", "drop_loss"), help="train this one and write nothing")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for variant in ("plain", "drop_loss"):
        if arguments.only not in (None, variant):
            continue
        first = learn(arguments.labels, arguments.work / variant, variant, arguments.steps)
        merged = next_labels(arguments.labels, first, arguments.work / f"{variant}-labels")
        again = learn(merged, arguments.work / f"{variant}-round-1", "plain", arguments.steps // 2, first)
        for name, detector in ((variant, first), (f"{variant} + self-training", again)):
            for side in SIDES:
                rows += score(name, detector, side, arguments.work)
    if arguments.only is None:
        write_rows("learning", score_labels(arguments.labels, arguments.work) + rows)


def learn(labels: Path, out: Path, variant: str, steps: int, init: Path | None = None) -> Path:
    """Train a detector; return its file."""
    drop_loss = "0.01" if variant == "drop_loss" else "null"
    settings = [f"steps={steps}", f"detector.drop_loss={drop_loss}", "precision=bf16"]
    settings += ["augment.short_sides=[96, 112, 128]", f"detector.short_side={SIDES[0]}"]
    if init is not None:
        settings += ["copy_paste.scale=[0.5, 1.0]", "optimiser.rate=0.005"]
    config = train.configure(labels, assignments=settings, recipe="small", init=str(init) if init else None)

    def say(report: StepReport) -> None:
        if report.position.step % 20 == 0:
            print(out.name, report.position.step, f"{report.loss:.3f}", f"{report.images_per_s:.1f}/s", flush=True)

    return train.run(config, out, say).detector


def next_labels(labels: Path, detector: Path, out: Path) -> Path:
    """What the detector finds on the pictures it has learned from, merged with what it was taught."""
    config = label.configure(config_file=labels / "config.json")
    wanted = predict.configure(detector, config.images, ["max_detections=30"], limit=config.limit)
    found = predict.run(wanted, out / "predictions").out
    counts = merge_files(labels / "annotations.json", found / "annotations.json", out / "labels.json", MergeConfig())
    print(out.name, counts, flush=True)
    (out / "result.json").write_text((labels / "result.json").read_text("utf-8"), "utf-8")
    return out / "labels.json"


def score(name: str, detector: Path, side: int, work: Path) -> list[dict[str, Any]]:
    """A row for each set."""
    rows = []
    for set_name in SETS:
        folder = unpacked(set_name, work / "eval")
        out = work / "scored" / f"{name.replace(' + ', '-')}-{side}-{set_name}"
        result = predict.run(predict.configure(detector, [str(folder / "images")], [f"short_side={side}"]), out)
        rows.append(row(name, side, set_name, result.out, folder))
    return rows


def score_labels(labels: Path, work: Path) -> list[dict[str, Any]]:
    """The same of the method that made the pseudo-labels, at its own size and at the default one."""
    rows = []
    for set_name in SETS:
        folder = unpacked(set_name, work / "eval")
        config = label.configure([str(folder / "images")], labels / "config.json", device="cpu")
        out = label.run(config.replace(limit=None), work / "scored" / f"labels-{set_name}").out
        rows.append(row("pseudo-labels", config.size, set_name, out, folder))
    return rows


def row(name: str, side: int, set_name: str, predictions: Path, folder: Path) -> dict[str, Any]:
    """Per cent, with 95 % intervals."""
    truth = read_truth(folder / "annotations.json")
    found = paired.measure(truth, read_predictions(predictions / "annotations.json", truth), set_name != "voc100")
    values: dict[str, Any] = {"what": name, "side": side, "set": set_name}
    for measure in MEASURES:
        estimate = found[measure].estimate() if measure in found else Estimate(None)
        for key, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
            values[measure + key] = None if value is None else round(100 * value, 2)
    print(values, flush=True)
    return values


def unpacked(name: str, folder: Path) -> Path:
    """A set of pictures with its truth, unpacked once."""
    with tarfile.open(SHARED / "data" / "eval" / f"{name}.tar") as archive:
        if not (folder / name / "annotations.json").exists():
            archive.extractall(folder / name, filter="data")
    return folder / name


if __name__ == "__main__":
    main()
