"""Logs of one JSON object a line, which survive a kill in the middle of a line."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from figureground.storage.atomic import explained, writing


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add one line; a line cut short by an earlier kill is first brought to its end.

    Raises:
        RunError: If the disk is full or the file cannot be written.
    """
    with explained(path), open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(entry).encode("ascii") + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line; lines cut short by a kill are passed over. No file, no lines."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text("utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def write(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write a whole file of lines atomically."""
    with writing(path) as file:
        for entry in entries:
            file.write(json.dumps(entry).encode("ascii") + b"\n")
