"""Mask and image to mask: dense CRF, bilateral solver, morphology."""

from figureground.refine.bilateral import BilateralSolverConfig, bilateral_solver, bilateral_solver_masks
from figureground.refine.dense_crf import DenseCRFConfig, dense_crf, dense_crf_masks
from figureground.refine.morphology import fill_holes
from figureground.refine.permutohedral import PermutohedralLattice
from figureground.refine.refine import RefineConfig, Refiner, refine_masks

__all__ = [
    "BilateralSolverConfig",
    "DenseCRFConfig",
    "PermutohedralLattice",
    "RefineConfig",
    "Refiner",
    "bilateral_solver",
    "bilateral_solver_masks",
    "dense_crf",
    "dense_crf_masks",
    "fill_holes",
    "refine_masks",
]
