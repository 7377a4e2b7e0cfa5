"""The normalised cut with a prior: one linear system instead of an eigenproblem."""

import torch
from jaxtyping import Float
from torch import Tensor


def biased_cut(
    affinity: Float[Tensor, "*batch N N"], prior: Float[Tensor, "*batch N"], strength: float = 0.5
) -> Float[Tensor, "*batch N"]:
    """The labelling that cuts few edges and stays near a prior: the minimum of x'(D - W)x + strength (x - p)'D(x - p).

    Args:
        affinity: Edge weights, symmetric and not negative, unitless.
        prior: What each patch is believed to be, e.g. its probability of being figure.
        strength: Weight of the prior; 0 would forget it, a large one returns it.

    Returns:
        One value per patch, between the smallest and the largest of the prior.

    Raises:
        ValueError: If ``strength`` is not positive or a patch has no edge at all.

    Reference:
        Maji, Vishnoi and Malik, Biased normalized cuts, CVPR 2011, and Zhu et al., CVPR 2014, section 4.2 (saliency
        optimisation). Deviates: the prior enters as a quadratic penalty of fixed weight instead of a constraint on the
        correlation, so that the solution is one symmetric positive definite system.
    """
    if strength <= 0:
        raise ValueError(f"The strength of the prior is positive, got {strength}.")
    dtype = torch.promote_types(affinity.dtype, torch.float32)
    weights = affinity.to(dtype)
    degree = weights.sum(-1)
    if not bool((degree > 0).all()):
        raise ValueError("A patch has no edge to any other: an isolated patch has no normalised cut (use eps > 0).")
    system = torch.diag_embed(degree * (1 + strength)) - weights
    right = (strength * degree * prior.to(dtype))[..., None]
    return torch.cholesky_solve(right, torch.linalg.cholesky(system))[..., 0]
