"""How many cores there are, and each worker's share of them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# What OpenMP, MKL, OpenBLAS, Accelerate and numexpr read, once, when they are loaded.
_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
)


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores(cores: int, workers: int) -> int:
    """Threads for each of so many workers on so many cores; ``OMP_NUM_THREADS`` decides where it is set.

    More threads than cores make a worker many times slower, for each waits for the others in a loop.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else max(1, cores // workers)


def thread_variables(threads: int) -> dict[str, str]:
    """The environment of a process whose libraries shall use so many threads."""
    return dict.fromkeys(_VARIABLES, str(threads))


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process while it starts another, which inherits them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
