"""The eigensolver and MaskCut's cut stage against the published procedure, in one process on the same features.

    python -m benchmarks.bench_solver            # writes results/bench/solver.csv

Affinities are given to both solvers ready-made. The published procedure is `scipy.linalg.eigh(D - W, D)` in float64;
its cut stage builds the affinity anew for each of its three solves. Each number of threads has a process of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    rows: list[dict[str, Any]] = []
    for threads in ("1", "2"):
        environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads),
        }
        command = [sys.executable, "-m", "benchmarks.bench_solver", "--worker"]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        rows += json.loads(output)
    from benchmarks.record import write_rows

    for row in rows:
        print(row)
    print(write_rows("bench/solver", rows))


def worker() -> list[dict[str, Any]]:
    import numpy as np
    import torch
    from scipy.linalg import eigh

    from benchmarks.record import SHARED
    from figureground.proposals import create
    from figureground.spectral import cosine_affinity, fiedler_vector
    from figureground.structures import PatchFeatures

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    rows = []
    for size in (240, 480):
        path = SHARED / "golden" / "cut" / f"000000000030_{size}.npz"
        values = torch.from_numpy(np.load(path)["features"])
        h, w = values.shape[:2]
        features = PatchFeatures(values[None], 8, (h * 8, w * 8))
        before = _reset_peak()
        create("maskcut").propose(features)
        peak_mb = (_peak_bytes() - before) / 2**20
        affinity = cosine_affinity(values.flatten(0, 1))
        published = affinity.double().numpy()

        def by_scipy(weights: Any = published) -> Any:
            degree = np.diag(weights.sum(1))
            return eigh(degree - weights, degree, subset_by_index=[1, 2])[1][:, 0]

        def by_us(weights: Any = affinity) -> Any:
            return fiedler_vector(weights)

        def published_cuts(values: Any = values) -> None:
            flat = torch.nn.functional.normalize(values.flatten(0, 1), dim=-1)
            for _ in range(3):
                cosine = (flat @ flat.T).numpy()
                weights = np.where(cosine > 0.15, 1.0, 1e-5)
                degree = np.diag(weights.sum(1))
                eigh(degree - weights, degree, subset_by_index=[1, 2])

        theirs, ours = by_scipy(), by_us().numpy()
        theirs = theirs * np.sign(theirs[np.abs(theirs).argmax()])
        same_split = bool(((theirs > theirs.mean()) == (ours > ours.mean())).all())
        slow = 3 if size == 240 else 1
        for what, method, repeats in (
            ("solve", ("scipy eigh f64", by_scipy), slow),
            ("solve", ("figureground f32", by_us), 30),
            ("cut stage, N=3", ("published procedure", published_cuts), slow),
            ("cut stage, N=3", ("maskcut reference", lambda f=features: create("maskcut", "reference").propose(f)), 10),
            ("cut stage, N=3", ("maskcut default", lambda f=features: create("maskcut").propose(f)), 10),
        ):
            name, function = method
            milliseconds = _time(function, repeats)
            rows.append(
                {"nodes": h * w, "threads": threads, "what": what, "method": name, "ms": round(milliseconds, 2)}
            )
        for what in ("solve", "cut stage, N=3"):
            group = [row for row in rows if row["what"] == what and row["nodes"] == h * w]
            for row in group:
                row["ratio"] = round(group[0]["ms"] / row["ms"], 1)
                row["same_split"] = same_split if what == "solve" else ""
        rows[-1]["peak_mb_above_before"] = round(peak_mb, 1)
    return rows


def _time(function: Callable[[], object], repeats: int) -> float:
    """Median milliseconds."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _reset_peak() -> int:
    """Bytes in memory now; the peak counts from here (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        print(json.dumps(worker()))
    else:
        main()
