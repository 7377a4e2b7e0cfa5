"""A run directory in, a page out."""

from figureground.viewer.report import write_report

__all__ = ["write_report"]
