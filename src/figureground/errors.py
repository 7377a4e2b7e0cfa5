"""Errors a person can act on: what was wrong, where, what to do."""


class FiguregroundError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: What was wrong, and where.
        remedy: What to do about it; one sentence, or nothing when the message says it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class UsageError(FiguregroundError):
    """The command or the call itself is wrong: a bad path, flag or combination (exit code 2)."""


class ConfigError(UsageError):
    """A configuration has an unknown key, a value out of range, or differs from the run's own."""


class ImageError(FiguregroundError):
    """One image cannot be used; the run goes on without it and names it."""


class WeightsError(FiguregroundError):
    """Weights cannot be found, read, or do not fit the model."""


class RunError(FiguregroundError):
    """A run cannot start, go on or be written."""
