"""Time and memory of the dense CRF at 480x480 on photographs of scikit-image.

    python -m benchmarks.bench_crf                 # writes results/bench/crf.csv

For comparison: pydensecrf's C++ takes 280 ms for one mask, lattices included (quoted from this project's survey of
dependencies; one thread, the same kind of machine).
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from skimage import data

from benchmarks.record import write_rows
from figureground.refine import DenseCRFConfig, bilateral_solver_masks, dense_crf_masks
from figureground.refine.dense_crf import _appearance_kernel, _smoothness_kernel

SIDE = 480
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="the least time of so many is reported")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    images = {name: photograph(name).to(device) for name in PHOTOGRAPHS}
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool, device=device)
    mask[80:400, 120:360] = True
    peak_bytes = peak_growth(lambda: dense_crf_masks(next(iter(images.values())), mask[None]), device)

    rows = []
    load = round(os.getloadavg()[0], 1)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for masks in (1, 3):
            stack = mask.expand(masks, -1, -1)
            times = [measure(image, stack, arguments.repeats) for image in images.values()]
            figures = {key: round(statistics.mean(t[key] for t in times), 1) for key in times[0]}
            size = {
                "device": device.type,
                "image": f"{SIDE}x{SIDE}",
                "threads": threads,
                "masks": masks,
                "load_before": load,
            }
            rows.append({**size, **figures, "peak_mb": round(peak_bytes / 1e6)})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
    print(f"peak memory of the first call: {peak_bytes / 1e6:.0f} MB")
    print(write_rows("bench/crf", rows))


def measure(image: torch.Tensor, masks: torch.Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds; ``total_ms`` with the position lattice at hand, as in every image of one size but the first."""
    config = DenseCRFConfig()
    kernels = [
        _smoothness_kernel(SIDE, SIDE, config.gaussian_sxy, image.device),
        _appearance_kernel(image[None], config),
    ]
    values = torch.rand(len(masks), SIDE * SIDE, device=image.device)

    def first() -> None:
        _smoothness_kernel.cache_clear()
        dense_crf_masks(image, masks)

    stages: dict[str, Callable[[], object]] = {
        "position_lattice_ms": lambda: _smoothness_kernel.__wrapped__(SIDE, SIDE, config.gaussian_sxy, image.device),
        "colour_lattice_ms": lambda: _appearance_kernel(image[None], config),
        "filtering_ms": lambda: [kernel(values) for _ in range(config.iterations) for kernel in kernels],
        "first_total_ms": first,
        "total_ms": lambda: dense_crf_masks(image, masks),
        "bilateral_ms": lambda: bilateral_solver_masks(image, masks),
    }
    times = {name: 1e3 * least_time_s(stage, image.device, repeats) for name, stage in stages.items()}
    # What other processes on the machine do lengthens the times above, but hardly this one.
    cpu_s = least_time_s(stages["total_ms"], image.device, repeats, clock=time.process_time)
    return {**times, "total_cpu_ms": 1e3 * cpu_s}


def least_time_s(
    run: Callable[[], object], device: torch.device, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    times = []
    for _ in range(repeats + 1):  # the first warms up
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times[1:])


def peak_growth(run: Callable[[], object], device: torch.device) -> int:
    """Bytes by which the peak grows over what is held before; call it before anything else of that size."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def photograph(name: str) -> torch.Tensor:
    image = Image.fromarray(getattr(data, name)()).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image))


if __name__ == "__main__":
    main()
