"""FreeSOLO, Exemplar-FreeSOLO and a cascade side by side: same pseudo-labels, same trunk, same steps.

A SOLOv2 learns from the pseudo-labels with FreeSOLO's weak losses; what it finds then replaces them, and it goes on
from there (FreeSOLO itself begins anew): plainly, and with the exemplar contrast on pools of 1, 3 and 5 exemplars a
cluster. A Cascade Mask R-CNN takes
the same steps. All begin with random weights; the truth is looked at only to score. Can be stopped and run again.

    python -m benchmarks.bench_exemplars RUN_OF_LABEL --work FOLDER [--steps 240]
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.bench_learning import next_labels, score, score_labels
from benchmarks.record import write_rows
from figureground.data.merge import MergeConfig, merge_files
from figureground.stages import exemplars, label, predict, train
from figureground.training.loop import StepReport

SIDE = 128
EXEMPLARS = (1, 3, 5)
CLUSTERS = 20
# Of every detector here: short sides of the pictures, and the trunk of the recipe `small`, a ResNet-18.
COMMON = ("precision=bf16", "augment.short_sides=[96, 112, 128]", f"detector.short_side={SIDE}")
FREESOLO = ("detector.embedding_weight=4", "augment.strong={}", "embedder.size=160")


def main() -> None:
    """Train, predict, score, write ``results/exemplars.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, help="run of `figureground label` to learn from")
    parser.add_argument("--work", type=Path, required=True, help="folder of the trainings; give the same to go on")
    parser.add_argument("--steps", type=int, default=240)
    arguments = parser.parse_args()
    labels, work, steps = arguments.labels, arguments.work, arguments.steps

    first = learn(labels, work / "freesolo", "solov2", steps, FREESOLO)
    replaced = found_labels(labels, first, work / "freesolo-labels")
    detectors = {"freesolo": first}
    detectors["freesolo + self-training"] = learn(
        replaced, work / "freesolo-round-1", "solov2", steps // 2, FREESOLO, init=first
    )
    for count in EXEMPLARS:
        pool = work / f"pool-{count}"
        exemplars.run(
            exemplars.configure(
                (), ["view_size=160"], run=str(labels), k=str(CLUSTERS), per_cluster=count, backbone=None
            ),
            pool,
        )
        settings = (*FREESOLO, f"exemplars={pool}", "exemplar.reduction=mean")
        detectors[f"exemplar-freesolo, {count} a cluster"] = learn(
            replaced, work / f"exemplar-{count}", "solov2", steps // 2, settings, init=first
        )
    cascade = learn(labels, work / "cascade", "cascade_mask_rcnn", steps)
    detectors["cascade"] = cascade
    merged = next_labels(labels, cascade, work / "cascade-labels")
    detectors["cascade + self-training"] = learn(
        merged, work / "cascade-round-1", "cascade_mask_rcnn", steps // 2, init=cascade
    )
    rows = score_labels(labels, work)
    for name, detector in detectors.items():
        rows += [{**row, "steps": steps} for row in score(name, detector, SIDE, work)]
    write_rows("exemplars", [{"steps": 0, **row} for row in rows])


def learn(
    labels: Path, out: Path, detector: str, steps: int, settings: tuple[str, ...] = (), *, init: Path | None = None
) -> Path:
    """Train a detector; return its file."""
    config = train.configure(
        labels,
        assignments=[*COMMON, f"steps={steps}", *settings, *(["optimiser.rate=0.005"] if init else [])],
        recipe="small",
        detector=detector,
        init=str(init) if init else None,
    )

    def say(report: StepReport) -> None:
        if report.position.step % 20 == 0:
            print(out.name, report.position.step, f"{report.loss:.3f}", f"{report.images_per_s:.1f}/s", flush=True)

    return train.run(config, out, say).detector


def found_labels(labels: Path, detector: Path, out: Path) -> Path:
    """What the detector finds with a score from 0.3 in the place of what it was taught, as FreeSOLO does."""
    config = label.configure(config_file=labels / "config.json")
    settings: list[Any] = ["max_detections=20", "score_threshold=0.3"]
    wanted = predict.configure(detector, config.images, settings, limit=config.limit)
    found = predict.run(wanted, out / "predictions").out
    counts = merge_files(
        labels / "annotations.json",
        found / "annotations.json",
        out / "labels.json",
        MergeConfig(min_score=0.3, keep_older=False, nms=None, max_width=0.95),
    )
    print(out.name, counts, flush=True)
    (out / "result.json").write_text((labels / "result.json").read_text("utf-8"), "utf-8")
    return out / "labels.json"


if __name__ == "__main__":
    main()
