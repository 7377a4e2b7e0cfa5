"""What a stage says while it runs and when it ends."""

from dataclasses import dataclass, field
from pathlib import Path

from figureground.storage import jsonlines


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is.

    Attributes:
        done: Images finished, those of an earlier start included.
        total: Images in all.
        fresh: Images finished since this start; what a rate is computed from.
        instances: Found so far.
        failed: Images that could not be used so far.
    """

    done: int
    total: int
    fresh: int
    instances: int
    failed: int


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage made.

    Attributes:
        out: The run's folder.
        report: The page to look at.
        images: Images finished.
        instances: Instances found in them.
        failed: Images that could not be used; they are named in ``failures.jsonl``.
        ignored: Files in the given folders that are no images.
        resumed: Images that an earlier start had finished already.
        seconds: Wall-clock time of this start.
        stage_seconds: Seconds spent in each part, over all starts.
    """

    out: Path
    report: Path
    images: int
    instances: int
    failed: int
    ignored: int
    resumed: int
    seconds: float
    stage_seconds: dict[str, float] = field(default_factory=dict)


def last_losses(log: Path, steps: int = 50) -> dict[str, float]:
    """The mean of each loss over the last steps in ``log.jsonl``; what was not finite is left out."""
    lines = [entry["losses"] for entry in jsonlines.read(log) if "losses" in entry][-steps:]
    means = {}
    for name in lines[-1] if lines else ():
        values = [line[name] for line in lines if line.get(name) is not None]
        if values:
            means[name] = round(sum(values) / len(values), 6)
    return means
