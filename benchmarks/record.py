"""Write measurements with what is needed to believe them: hardware, versions, commit, date."""

import csv
import datetime
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from figureground.stages.environment import processor_name

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
# The folder with golden files and photographs, named here once for all benchmarks.
SHARED = Path(os.environ.get("FIGUREGROUND_SHARED", ROOT / ".." / "shared")).resolve()


def write_rows(name: str, rows: Iterable[dict[str, Any]]) -> Path:
    """Write ``results/<name>.csv`` anew, each row with the circumstances of the measurement."""
    facts = {
        "hardware": f"{processor_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    lines = [{**row, **facts} for row in rows]
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for line in lines for key in line)))
        writer.writeheader()
        writer.writerows(lines)
    return path


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "src")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
