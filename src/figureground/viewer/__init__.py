"""A run directory in, a page out."""

from figureground.viewer.report import thumbnail_size, write_report

__all__ = ["thumbnail_size", "write_report"]
