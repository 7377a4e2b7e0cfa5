"""A run directory in, a page out."""

from figureground.viewer.clusters import Sheet, crop, write_clusters
from figureground.viewer.comparison import write_comparison
from figureground.viewer.exemplars import ExemplarSheet, write_exemplars
from figureground.viewer.page import spread
from figureground.viewer.pictures import thumbnail_size
from figureground.viewer.report import write_report
from figureground.viewer.rounds import write_rounds
from figureground.viewer.training import Picture, write_training

__all__ = [
    "ExemplarSheet",
    "Picture",
    "Sheet",
    "crop",
    "spread",
    "thumbnail_size",
    "write_clusters",
    "write_comparison",
    "write_exemplars",
    "write_report",
    "write_rounds",
    "write_training",
]
