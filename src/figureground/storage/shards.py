"""Shards: the unit of work that is either done or not.

A shard is done exactly when its ``.done.json`` exists; that file is written last and holds the fingerprint of what
went in, so that a shard whose inputs have changed since is made again.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figureground.storage.atomic import write_bytes, write_json


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of a run.

    Attributes:
        folder: ``shards/`` of the run.
        index: From 0, in the order of the sorted inputs.
        fingerprint: Of its inputs.
    """

    folder: Path
    index: int
    fingerprint: str

    @property
    def data_path(self) -> Path:
        """Where its records are."""
        return self.folder / f"{self.index:05d}.json.gz"

    @property
    def done_path(self) -> Path:
        """What says that it is done."""
        return self.folder / f"{self.index:05d}.done.json"

    def summary(self) -> dict[str, Any] | None:
        """What was written on finishing, or ``None`` while the shard is to be made (again)."""
        try:
            summary = json.loads(self.done_path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        matches = isinstance(summary, dict) and summary.get("fingerprint") == self.fingerprint
        return summary if matches and self.data_path.exists() else None

    def write(self, records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Write the records, then the word that they are done."""
        self.done_path.unlink(missing_ok=True)
        text = json.dumps(records, separators=(",", ":")).encode("ascii")
        # Without a time stamp, so that the same records are the same bytes.
        write_bytes(self.data_path, gzip.compress(text, compresslevel=6, mtime=0))
        write_json(self.done_path, {**summary, "fingerprint": self.fingerprint})

    def read(self) -> list[dict[str, Any]]:
        """The records of a shard that is done."""
        return json.loads(gzip.decompress(self.data_path.read_bytes()))


def fingerprint(parts: Iterable[str]) -> str:
    """A short name of a list of texts; any change of any of them changes it.

    Example:
        >>> fingerprint(["a", "b"]) == fingerprint(["ab"])
        False
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:24]
