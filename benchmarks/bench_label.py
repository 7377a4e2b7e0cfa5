"""Images a second of `figureground label` from end to end, and where the time goes.

python -m benchmarks.bench_label [FOLDER]      # default: the photographs of coco128; writes results/bench/label.csv
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.record import SHARED, write_rows

LIMIT = 64


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(name) / "coco128"
        if len(sys.argv) < 2:
            with tarfile.open(SHARED / "data" / "eval" / "coco128.tar") as archive:
                archive.extractall(folder, filter="data")
        for threads in ("1", "2"):
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            for method in ("background", "maskcut", "tokencut"):
                out = Path(name) / f"{method}-{threads}"
                command = [sys.executable, "-m", "figureground", "label", str(folder), "--out", str(out)]
                command += ["--method", method, "--limit", str(LIMIT)]
                subprocess.run(command, env=environment, check=True, capture_output=True)
                result = json.loads((out / "result.json").read_text())
                row = {"method": method, "backbone": "handcrafted", "threads": threads, "images": result["images"]}
                row |= {"images_per_s": result["images_per_s"], "seconds": result["seconds"]}
                images = result["images"]
                row |= {f"{part}_ms": round(1000 * s / images, 1) for part, s in result["stage_seconds"].items()}
                print(row, flush=True)
                rows.append(row)
    print(write_rows("bench/label", rows))


if __name__ == "__main__":
    main()
