"""One verb a file: a Config, and ``run(config, out) -> StageResult``."""

from figureground.stages.result import Progress, StageResult

__all__ = ["Progress", "StageResult"]
