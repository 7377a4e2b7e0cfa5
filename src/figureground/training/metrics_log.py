"""What training measured, one line a step in ``log.jsonl``."""

from pathlib import Path
from typing import Any

from figureground.storage import jsonlines


class MetricsLog:
    """The lines of the steps, beside whatever else the log of a run holds.

    Args:
        path: ``log.jsonl``; made with its first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Forget the lines of ``step`` and later: those steps are made again."""
        entries = jsonlines.read(self.path)
        kept = [entry for entry in entries if entry.get("step", -1) < step]
        if len(kept) < len(entries):
            jsonlines.write(self.path, kept)

    def write(self, step: int, **metrics: Any) -> None:
        """Add the line of a step."""
        jsonlines.append(self.path, {"step": step, **metrics})
