"""What every test shares: the folder of golden files and photographs, one thread, no network."""

import os
from pathlib import Path

import pytest
import torch

# The one place that names the folder with golden outputs and photographs.
SHARED = Path(os.environ.get("FIGUREGROUND_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()


def pytest_configure() -> None:
    # Two processes with two threads each on two cores are many times slower than one thread each.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder, or a skip where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"golden files and photographs are not at {SHARED} (set FIGUREGROUND_SHARED)")
    return SHARED


def golden(pattern: str) -> list:
    """Parameters for each golden file of ``pattern``; one skipped parameter where there is none."""
    files = sorted((SHARED / "golden").glob(pattern))
    if not files:
        reason = f"no golden/{pattern} at {SHARED} (set FIGUREGROUND_SHARED)"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id=pattern)]
    return [pytest.param(path, id=path.stem) for path in files]
