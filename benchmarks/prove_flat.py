"""Label many small images in two processes, and show that memory stays flat and the rate the same to the end.

python -m benchmarks.prove_flat FOLDER [IMAGES] [WORKERS]      # default 100,000 images, 2 workers

The images are drawn once into FOLDER/photos; a later start goes on with them, and labels them anew. Writes
results/bench/flat.csv and results/bench/flat.svg, and ends with PASS or FAIL.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.record import RESULTS, write_rows
from figureground.storage.atomic import write_bytes

_SIDE = 48
_FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("jpg", {"quality": 90}),
    ("png", {"compress_level": 1}),
    ("webp", {"method": 0}),
)
_IN_A_FOLDER = 1000
_EVERY_S = 2.0
_SETTINGS = ("size=64", "refine.method=none", "shard_size=50")
# Of the memory of the second tenth, and of the rate of the first.
_MEMORY, _RATE = 1.1, 0.1
Sample = tuple[float, int, int]
"""Seconds since the start, images done, bytes of resident memory of all processes."""


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    workers = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    draw_photos(folder / "photos", count)
    shutil.rmtree(folder / "run", ignore_errors=True)
    samples, finishes = watch(_command(folder, count, workers), folder / "run" / "log.jsonl")
    result = json.loads((folder / "run" / "result.json").read_text("utf-8"))
    if (result["images"], result["failed"]) != (count, 0):
        raise SystemExit(f"{result['images']} of {count} images were labelled, {result['failed']} failed")
    row = {"images": count, "workers": workers, **measure(samples, finishes, count)}
    print(row)
    write_bytes(RESULTS / "bench" / "flat.svg", plot(samples, finishes, count).encode())
    print(write_rows("bench/flat", [row]))
    print(
        f"{row['verdict']}: memory x{row['memory_ratio']} from the second to the last tenth, rate x{row['rate_ratio']}"
    )
    if row["verdict"] != "PASS":
        raise SystemExit(1)


def _command(folder: Path, count: int, workers: int) -> list[str]:
    command = [sys.executable, "-m", "figureground", "label", str(folder / "photos"), "--out", str(folder / "run")]
    # The fastest method: what is tried is everything around it.
    command += ["--method", "tokencut", "--limit", str(count), "--runner", "processes", "--workers", str(workers)]
    return command + [part for setting in _SETTINGS for part in ("--set", setting)]


def draw_photos(folder: Path, count: int) -> None:
    """One or two discs on a ground, all different, in folders of a thousand; those that are there stay."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    for first in range(0, count, _IN_A_FOLDER):
        part = folder / f"{first // _IN_A_FOLDER:05d}"
        if part.exists():
            continue
        unfinished = folder / f".{part.name}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        chance = np.random.default_rng(first)
        for index in range(first, first + _IN_A_FOLDER):
            pixels = np.broadcast_to(chance.integers(0, 256, 3, dtype=np.uint8), (_SIDE, _SIDE, 3)).copy()
            for _ in range(1 + index % 2):
                row, column, radius = chance.integers((10, 10, 5), (38, 38, 14))
                pixels[(y - row) ** 2 + (x - column) ** 2 < radius**2] = chance.integers(0, 256, 3)
            suffix, options = _FORMATS[index % len(_FORMATS)]
            Image.fromarray(pixels).save(unfinished / f"{index:08d}.{suffix}", **options)
        unfinished.rename(part)


def watch(command: Sequence[str], log: Path) -> tuple[list[Sample], list[tuple[float, int]]]:
    """Run a command to its end.

    Returns:
        Samples of its memory; and for each shard when it was done, seconds since the start, and how many images were
        done then.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    start = time.time()
    samples: list[Sample] = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            finishes = _finishes(log, start)
            samples.append((time.time() - start, finishes[-1][1] if finishes else 0, _resident_bytes(process.pid)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EVERY_S)
        if process.returncode:
            raise SystemExit(f"the run ended with exit code {process.returncode}")
    return samples, _finishes(log, start)


def _finishes(log: Path, start: float) -> list[tuple[float, int]]:
    finishes, done = [], 0
    with contextlib.suppress(FileNotFoundError):
        for line in log.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that is being written
                entry = json.loads(line)
                if entry["event"] == "shard":
                    done += entry["images"]
                    finishes.append((entry["time"] - start, done))
    return finishes


def _resident_bytes(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def measure(samples: Sequence[Sample], finishes: Sequence[tuple[float, int]], count: int) -> dict[str, Any]:
    """Rate and memory by tenths of the images; what comes before the first shard and after the last stands apart."""
    tenths = np.linspace(finishes[0][1], count, 11)
    times = np.interp(tenths, [done for _, done in finishes], [seconds for seconds, _ in finishes])
    rates = np.diff(tenths) / np.diff(times)
    at, resident = np.array([(seconds, resident) for seconds, _, resident in samples]).T
    second, last = (
        np.interp(np.linspace(low, high), at, resident).mean() for low, high in ((times[1], times[2]), times[9:11])
    )
    ratio, rate = float(last / second), float(rates[-1] / rates[0])
    return {
        "seconds": round(samples[-1][0]),
        "images_per_s": round(float((count - finishes[0][1]) / (times[10] - times[0])), 1),
        "first_tenth_images_per_s": round(float(rates[0]), 1),
        "last_tenth_images_per_s": round(float(rates[-1]), 1),
        "rate_ratio": round(rate, 3),
        "second_tenth_mb": round(second / 1e6),
        "last_tenth_mb": round(last / 1e6),
        "memory_ratio": round(ratio, 3),
        "peak_mb": round(resident[at <= times[10]].max() / 1e6),
        "finishing_s": round(samples[-1][0] - times[10]),
        "finishing_peak_mb": round(resident[at >= times[9]].max() / 1e6),
        "verdict": "PASS" if ratio <= _MEMORY and abs(rate - 1) <= _RATE else "FAIL",
    }


def plot(samples: Sequence[Sample], finishes: Sequence[tuple[float, int]], count: int) -> str:
    """Memory and rate over time, one above the other, as SVG."""
    # Over several shards each: those of several workers end in bunches.
    marks = np.linspace(finishes[0][1], count, min(51, 2 + len(finishes) // 10))
    times = np.interp(marks, [done for _, done in finishes], [seconds for seconds, _ in finishes])
    end = samples[-1][0]
    curves = [
        ("memory of all processes, MB", [(seconds, resident / 1e6) for seconds, _, resident in samples]),
        ("images/s", list(zip(times[1:].tolist(), (np.diff(marks) / np.diff(times)).tolist(), strict=True))),
    ]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 480" font-family="sans-serif" font-size="13">',
        '<rect width="800" height="480" fill="white"/>',
        f'<text x="60" y="20">figureground label, {count:,} images</text>',
        f'<text x="760" y="470" text-anchor="end">{end:,.0f} s</text>',
    ]
    for place, (title, points) in enumerate(curves):
        bottom = 240 + 210 * place
        most = 1.1 * max(value for _, value in points)
        for share in (0, 0.5, 1):
            at = bottom - 170 * share
            parts.append(f'<path d="M60 {at}H760" stroke="#ccc"/>')
            parts.append(f'<text x="54" y="{at + 4}" text-anchor="end">{most * share:,.0f}</text>')
        line = " ".join(f"{60 + 700 * x / end:.1f},{bottom - 170 * y / most:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="1.5"/>')
        parts.append(f'<text x="60" y="{bottom - 176}">{title}</text>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    main()
