"""From the words of a command line to a runner."""

import os
from typing import Literal

from figureground.errors import UsageError
from figureground.runners.interface import Runner
from figureground.runners.processes import ProcessRunner
from figureground.runners.ray import RayRunner
from figureground.runners.serial import run_serial

RunnerName = Literal["serial", "processes", "ray"]


def create_runner(
    name: RunnerName | None = None, workers: int | None = None, address: str | None = None, device: str = "cpu"
) -> Runner:
    """The runner that is asked for.

    Args:
        name: Which; none: ``ray`` with an address, else ``processes`` with a number of workers, else ``serial``.
        workers: How many; none: as many as there are accelerators or cores.
        address: Of a Ray cluster, ``auto`` or ``host:port``.
        device: What the workers compute on. With ``cuda`` each gets an accelerator of its own as far as they go, with
            ``cuda:N`` all share that one.

    Raises:
        UsageError: If these contradict each other, or there is no accelerator here.
    """
    name = name or ("ray" if address else "processes" if workers else "serial")
    if address and name != "ray":
        raise UsageError(f"--address is that of a Ray cluster, but the runner is {name}.", "Add --runner ray.")
    if workers and name == "serial":
        raise UsageError("The runner is serial: it has no workers.", "Use --runner processes, or ray.")
    if name == "serial":
        return run_serial
    if name == "ray":
        if device.startswith("cuda:"):
            raise UsageError(f"Ray says which accelerator a worker gets, not {device!r}.", "Use --device cuda.")
        return RayRunner(workers, address, gpus=1 if device == "cuda" else 0)
    if device.startswith("cuda:"):
        return ProcessRunner(workers or 1)
    return ProcessRunner(workers, _accelerators() if device == "cuda" else ())


def _accelerators() -> tuple[str, ...]:
    """Those that this process sees, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise UsageError("Device 'cuda' is not there: torch sees no CUDA device.", "Use --device cpu.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(visible.split(",")[:count]) if visible else tuple(str(index) for index in range(count))
