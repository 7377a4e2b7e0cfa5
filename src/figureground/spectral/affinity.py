"""Patch features to graph weights."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def cosine_affinity(
    features: Float[Tensor, "*batch N D"], tau: float | None = 0.15, eps: float = 1e-5
) -> Float[Tensor, "*batch N N"]:
    """Graph weights from the cosine similarity of patch features, in float32 or better.

    Args:
        features: One vector per patch; a zero vector is similar to nothing.
        tau: Binarise: 1 where the cosine is above ``tau``, else ``eps`` (TokenCut 0.2, MaskCut 0.15);
            ``None`` keeps the cosine itself, where it is above ``eps``.
        eps: Floor of the weights, so that the graph is connected.

    Returns:
        Symmetric weights in [``eps``, 1].

    Raises:
        ValueError: If a feature is not finite or ``eps`` is negative.

    Reference:
        Wang et al., TokenCut, CVPR 2022, section 3.2.
    """
    if eps < 0:
        raise ValueError(f"The floor of the weights cannot be negative, got eps={eps}.")
    if not torch.isfinite(features).all():
        raise ValueError("Features hold NaN or infinite values: the image or the weights are damaged.")
    dtype = torch.promote_types(features.dtype, torch.float32)
    unit = functional.normalize(features.to(dtype), dim=-1)
    # In place from here: at 3600 patches each further copy would cost 52 MB.
    weights = unit @ unit.mT
    if tau is not None:
        weights.gt_(tau)
    return weights.clamp_(min=eps, max=1.0)
