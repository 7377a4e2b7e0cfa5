"""What a run costs before its first image: time and memory of listing the images and cutting them into shards.

    python -m benchmarks.simulate_listing                           # a million; writes results/bench/listing.csv
    python -m benchmarks.simulate_listing --images 10000 100000     # a row each

The images are empty files, a thousand in a folder as in ImageNet; nothing decodes them. They are made under the
temporary folder and removed.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.record import write_rows
from figureground.data.listing import list_images
from figureground.stages.sharding import Sweep

_IN_A_FOLDER = 1000
Made = TypeVar("Made")


def peak_bytes() -> int:
    """The most memory this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(do: Callable[[], Made]) -> tuple[Made, float, float]:
    """What it gives, its seconds, and the megabytes by which the peak grows."""
    before, start = peak_bytes(), time.perf_counter()
    made = do()
    return made, round(time.perf_counter() - start, 2), round((peak_bytes() - before) / 1e6, 1)


def measure(count: int, shard_size: int) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "images"
        for first in range(0, count, _IN_A_FOLDER):
            folder = root / f"n{first // _IN_A_FOLDER:08d}"
            folder.mkdir(parents=True)
            for index in range(first, min(first + _IN_A_FOLDER, count)):
                (folder / f"{folder.name}_{index:08d}.jpg").touch()
        images, list_s, list_mb = timed(lambda: list_images([root]))
        out = Path(name) / "run"
        (out / "shards").mkdir(parents=True)
        _, cut_s, cut_mb = timed(lambda: Sweep(out, images, images.names, shard_size))
    return {
        "images": count,
        "shard_size": shard_size,
        "list_s": list_s,
        "list_mb_above_before": list_mb,
        "cut_s": cut_s,
        "cut_mb_above_before": cut_mb,
        "bytes_per_image": round(1e6 * (list_mb + cut_mb) / count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000], help="rising, for the peak only rises")
    parser.add_argument("--shard-size", type=int, default=512)
    args = parser.parse_args()
    rows = []
    for count in args.images:
        rows.append(measure(count, args.shard_size))
        print(rows[-1], flush=True)
    print(write_rows("bench/listing", rows))


if __name__ == "__main__":
    main()
