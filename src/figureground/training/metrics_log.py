"""What training measured, one line a step in ``log.jsonl``, and for TensorBoard where it is wanted."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from figureground.errors import UsageError
from figureground.storage import jsonlines


class MetricsLog:
    """The lines of the steps, beside whatever else the log of a run holds.

    Args:
        path: ``log.jsonl``; made with its first line.
        board: Folder that gets the same numbers as TensorBoard's scalars; none: they are not written.

    Raises:
        UsageError: If a board is asked for and TensorBoard is not installed.
    """

    def __init__(self, path: Path, board: Path | None = None) -> None:
        self.path, self.board = path, board
        self._open = _tensorboard() if board else None
        self._writer: Any = None

    def rewind(self, step: int) -> None:
        """Forget what was written of ``step`` and later: those steps are made again."""
        entries = jsonlines.read(self.path)
        kept = [entry for entry in entries if entry.get("step", -1) < step]
        if len(kept) < len(entries):
            jsonlines.write(self.path, kept)
        if self._open:
            self.close()
            self._writer = self._open(str(self.board), purge_step=step)

    def write(self, step: int, **metrics: Any) -> None:
        """Add a line of a step."""
        jsonlines.append(self.path, {"step": step, **metrics})
        if self._writer:
            for name, value in _scalars(metrics):
                self._writer.add_scalar(name, value, step)
            # A kill must not take what a checkpoint is past.
            self._writer.flush()

    def close(self) -> None:
        """End the writing for TensorBoard; there may be more lines."""
        if self._writer:
            self._writer.close()
            self._writer = None


def _scalars(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number, under a name such as ``losses/mask``; what is null or no number is left out."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "TensorBoard is not installed, and its scalars are asked for.", "pip install figureground[tensorboard]"
        ) from error
    return SummaryWriter
