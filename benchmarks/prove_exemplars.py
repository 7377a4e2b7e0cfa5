"""Learn a SOLOv2 from drawn pictures with FreeSOLO's losses, plainly and beside exemplars; show that these do no harm.

    python -m benchmarks.prove_exemplars [FOLDER]       # default: a temporary folder; minutes on one core

Masks come from `background`, exemplars from their clusters; the numbers are of other pictures. Can be stopped and run
again where a folder is given.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.prove_learn import draw_pictures
from figureground.data.coco import write_coco
from figureground.data.truth import read_predictions, read_truth
from figureground.evaluation import paired
from figureground.stages import exemplars, label, predict, train
from figureground.training.loop import StepReport

# How much worse in mask AP50, per cent, counts as harm.
_TOLERANCE = 3.0


def main() -> None:
    """Label, choose exemplars, train twice, compare."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if not (folder / "truth.json").exists():
            draw_pictures(folder / "photos", 120, first_seed=0)
            images = draw_pictures(folder / "other", 60, first_seed=10_000)
            write_coco(folder / "truth.json", lambda: images, "drawn")
        labels = label.run(label.configure([str(folder / "photos")], assignments=["size=192"]), folder / "labels").out
        chosen = exemplars.configure((), ["view_size=96"], run=str(labels), k="6", per_cluster=3)
        pool = exemplars.run(chosen, folder / "pool").out
        plain = learn(labels, folder / "plain")
        beside = learn(labels, folder / "exemplars", f"exemplars={pool}")
        values = {name: measure(detector, folder, name) for name, detector in (("plain", plain), ("beside", beside))}
        print(f"mask AP50 on other pictures: {values['plain']:.1f} plain, {values['beside']:.1f} beside exemplars")
        if values["beside"] < values["plain"] - _TOLERANCE:
            raise SystemExit("exemplars make it worse")


def learn(labels: Path, out: Path, *settings: str) -> Path:
    """Train the recipe `tiny`; return the detector."""
    settings = ("detector.embedding_weight=1", "embedder.size=96", *settings)
    config = train.configure(labels, assignments=settings, recipe="tiny", detector="solov2")

    def say(report: StepReport) -> None:
        if report.position.step % 50 == 0:
            print(out.name, report.position.step, f"{report.loss:.3f}", flush=True)

    return train.run(config, out, say).detector


def measure(detector: Path, folder: Path, name: str) -> float:
    """Mask AP50 on the pictures that were not learned from, in per cent."""
    out = predict.run(predict.configure(detector, [str(folder / "other")]), folder / f"found-{name}").out
    truth = read_truth(folder / "truth.json")
    value = paired.measure(truth, read_predictions(out / "annotations.json", truth), True)["mask_ap50"].value
    return 100 * (value or 0.0)


if __name__ == "__main__":
    main()
