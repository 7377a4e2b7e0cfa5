"""How good every discovery method is on the labelled photographs, with what is in the package.

    python -m benchmarks.bench_methods           # writes results/methods.csv

Each method with each of its presets by `figureground compare`, unrefined, and what `label` does by default, with
and without the weights in the package, refined.
Two processes of one thread each; times are those of such a process.
"""

import csv
import os
import tarfile
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.record import SHARED, write_rows

# The largest first, so that two processes end together.
SETS = ("weizmann", "coco128", "voc100", "davis8")
SIZE = "size=368"  # the area of 320 x 427 px


def main() -> None:
    # Read before any library: workers inherit them.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        for name in SETS:
            with tarfile.open(SHARED / "data" / "eval" / f"{name}.tar") as archive:
                archive.extractall(Path(folder) / name, filter="data")
        jobs = [(folder, name, refine) for name in SETS for refine in ("none", "dense_crf")]
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            results = list(pool.map(measure, jobs))
    rows = [row for result in results for row in result]
    print(write_rows("methods", sorted(rows, key=lambda row: (SETS.index(row["set"]), row["refine"] == "none"))))


def measure(job: tuple[str, str, str]) -> list[dict[str, str]]:
    """Rows of one set: all methods unrefined, or the default of `label` refined."""
    from figureground.proposals import METHODS
    from figureground.stages.compare import configure, run

    folder, name, refine = job
    out = Path(folder) / f"{name}-{refine}"
    settings = [SIZE, f"refine.method={refine}"]
    methods = ["background", "background:unlearned"]
    if refine == "none":
        probe = configure([str(Path(folder) / name / "images")], settings)
        methods = list(probe.methods)
        for method in probe.methods:
            presets = METHODS[method].PRESETS
            methods += [f"{method}:{preset}" for preset in presets if presets[preset] != presets["default"]]
    truth = Path(folder) / name / "annotations.json"
    config = configure([str(Path(folder) / name / "images")], settings, methods=methods, truth=str(truth))
    result = run(config, out)
    print(
        f"{name}, refine {refine}: {len(methods)} methods, {result.images} images, {result.seconds:.0f} s", flush=True
    )
    with open(out / "comparison.csv", newline="", encoding="utf-8") as file:
        return [{"set": name, "refine": refine, "size": SIZE, **row} for row in csv.DictReader(file)]


if __name__ == "__main__":
    main()
