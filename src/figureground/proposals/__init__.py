"""Patch features to instances: one paper per file, and the baselines that every paper should be compared with."""

from typing import Any

from figureground.errors import UsageError
from figureground.proposals.attention import Attention
from figureground.proposals.background import Background
from figureground.proposals.baselines import CentredBox, WholeImage
from figureground.proposals.found import Found
from figureground.proposals.freemask import FreeMask
from figureground.proposals.hac import HAC
from figureground.proposals.interface import Method, nearest
from figureground.proposals.kmeans import KMeans
from figureground.proposals.lost import Lost
from figureground.proposals.maskcut import MaskCut
from figureground.proposals.promerge import ProMerge
from figureground.proposals.selective_search import SelectiveSearch
from figureground.proposals.tokencut import TokenCut
from figureground.proposals.votecut import VoteCut

METHODS: dict[str, type[Method]] = {
    "background": Background,
    "lost": Lost,
    "maskcut": MaskCut,
    "tokencut": TokenCut,
    "found": Found,
    "freemask": FreeMask,
    "kmeans": KMeans,
    "attention": Attention,
    "votecut": VoteCut,
    "promerge": ProMerge,
    "hac": HAC,
    "centred_box": CentredBox,
    "whole_image": WholeImage,
    "selective_search": SelectiveSearch,
}


def create(name: str, preset: str = "default", **config: Any) -> Method:
    """Make a discovery method.

    Args:
        name: A key of :data:`METHODS`.
        preset: ``default`` (what measured best here) or ``reference`` (what the published code does).
        config: Fields of the method's configuration that differ from the preset.

    Raises:
        UsageError: If there is no such method or preset.
        ConfigError: If a field does not exist or its value is out of range.

    Example:
        >>> create("maskcut", preset="reference").config.tau
        0.15
    """
    if name not in METHODS:
        raise UsageError(f"There is no method {name!r}.{nearest(name, METHODS)}")
    method = METHODS[name]
    if preset not in method.PRESETS:
        raise UsageError(f"{name} has no preset {preset!r}; it has: {', '.join(method.PRESETS)}.")
    return method(method.PRESETS[preset].replace(**config))


__all__ = ["METHODS", "create"]
