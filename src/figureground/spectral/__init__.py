"""Affinity, normalised cut, eigensolver: the one solver that all cuts share."""

from figureground.spectral.affinity import cosine_affinity
from figureground.spectral.biased import biased_cut
from figureground.spectral.ncut import fiedler_vector, ncut_value, smallest_eigenvectors

__all__ = ["biased_cut", "cosine_affinity", "fiedler_vector", "ncut_value", "smallest_eigenvectors"]
