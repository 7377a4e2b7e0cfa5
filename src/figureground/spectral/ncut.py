"""The one solver that all cuts share: eigenvectors of the normalised cut.

The generalised problem (D - W) y = lambda D y is solved as the largest eigenvectors z of D^-1/2 W D^-1/2 by Lanczos
iteration, y = D^-1/2 z. Neither D, nor D - W, nor the normalised matrix is ever formed: one step reads W once.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CHECK_EVERY = 5
_MAX_STEPS = 300
# Steps after a breakdown in which a further copy of an eigenvalue has come up if there is one.
_SETTLE = 20
# Residual of an eigenpair, relative to the largest eigenvalue (which is 1), at which the iteration stops.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def fiedler_vector(
    affinity: Float[Tensor, "*batch N N"], live: Bool[Tensor, "*batch N"] | None = None
) -> Float[Tensor, "*batch N"]:
    """Second eigenvector of the normalised graph Laplacian, one per image.

    Args:
        affinity: Edge weights, symmetric and not negative, unitless.
        live: Patches that take part; the others are out of the graph and get 0.

    Returns:
        One value per patch, scaled so that ``y^T D y = 1``; the entry of largest magnitude is positive. Zeros where
        fewer than two patches are live.

    Raises:
        ValueError: If a live row sums to zero: an isolated patch has no normalised cut.

    Reference:
        Shi and Malik, PAMI 2000, section 2.1. Deviates: solved as D^-1/2 W D^-1/2 by Lanczos.
    """
    return smallest_eigenvectors(affinity, 1, live)[1].squeeze(-2)


def smallest_eigenvectors(
    affinity: Float[Tensor, "*batch N N"], count: int, live: Bool[Tensor, "*batch N"] | None = None
) -> tuple[Float[Tensor, "*batch K"], Float[Tensor, "*batch K N"]]:
    """The second, third, ... eigenpairs of (D - W) y = lambda D y, by rising eigenvalue.

    The first pair, the constant vector with eigenvalue 0, is left out. Works in float32, or in float64 if the affinity
    is float64. An eigenvalue that is met several times (a graph in several parts, a uniform graph) has no single
    eigenvector: the one returned is fixed by a fixed start of the iteration, so that it is the same on every call.

    Args:
        affinity: Edge weights, symmetric and not negative, unitless.
        count: How many pairs.
        live: Patches that take part; the others are out of the graph and get 0.

    Returns:
        Eigenvalues in [0, 2], and vectors scaled so that ``y^T D y = 1``, the first entry whose magnitude comes within
        1e-5 of the largest being positive. Where fewer than ``count + 1`` patches are live, the missing pairs have
        eigenvalue 2 (the worst there is) and vector 0.

    Raises:
        ValueError: If a live row sums to zero, a weight is negative or not finite, or ``count`` is not positive.

    Reference:
        Shi and Malik, PAMI 2000, section 2.1; Golub and Van Loan, Matrix Computations, 4th edition, section 10.1
        (Lanczos with full reorthogonalisation).
    """
    if count < 1:
        raise ValueError(f"At least one eigenvector has to be asked for, got {count}.")
    batch, n = affinity.shape[:-2], affinity.shape[-1]
    weights = affinity.reshape(-1, n, n).to(torch.promote_types(affinity.dtype, torch.float32))
    alive = torch.ones(weights.shape[:2], dtype=torch.bool, device=weights.device)
    if live is not None:
        alive = live.reshape(-1, n)
    pairs = [_solve(w, a, count) for w, a in zip(weights, alive, strict=True)]
    values = torch.stack([value for value, _ in pairs])
    vectors = torch.stack([vector for _, vector in pairs])
    return values.reshape(*batch, count), vectors.reshape(*batch, count, n)


def ncut_value(
    affinity: Float[Tensor, "N N"], partition: Bool[Tensor, "N"], live: Bool[Tensor, "N"] | None = None
) -> float:
    """Normalised cut of a partition, in [0, 2]: cut/vol(A) + cut/vol(B); 2 if a side is empty."""
    alive = torch.ones_like(partition) if live is None else live
    sides = torch.stack([partition & alive, ~partition & alive]).to(affinity.dtype)
    volumes = sides @ affinity @ sides.T
    total = volumes.sum(1)
    if bool((total <= 0).any()):
        return 2.0
    return float((volumes[0, 1] / total).sum())


def _solve(weights: Tensor, live: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Eigenpairs of one graph; see :func:`smallest_eigenvectors`."""
    n = weights.shape[0]
    mask = live.to(weights.dtype)
    degree = (weights @ mask) * mask
    if not bool(torch.isfinite(degree).all()) or bool((degree < 0).any()):
        raise ValueError("Graph weights must be finite and not negative.")
    if bool((degree[live] <= 0).any()):
        raise ValueError("A patch has no edge to any other: an isolated patch has no normalised cut (use eps > 0).")
    values = weights.new_full((count,), 2.0)
    vectors = weights.new_zeros((count, n))
    found = min(count, int(live.sum()) - 1)
    if found < 1:
        return values, vectors
    scale = torch.where(live, degree, torch.inf).rsqrt()
    trivial = degree.sqrt() / degree.sum().sqrt()
    ritz_values, ritz_vectors = _lanczos(weights, scale, trivial, mask, found)
    values[:found] = (1 - ritz_values).clamp(0, 2)
    vectors[:found] = _fix_signs(ritz_vectors * scale)
    return values, vectors


def _lanczos(weights: Tensor, scale: Tensor, trivial: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest ``count`` eigenpairs of ``scale * W * scale`` on the live nodes, orthogonal to ``trivial``."""
    dimension = int(mask.sum()) - 1
    steps = min(_MAX_STEPS, dimension)
    # A breakdown (an invariant subspace) is a residual at the level of rounding.
    tiny = 100 * torch.finfo(weights.dtype).eps
    basis = weights.new_zeros((steps + 1, weights.shape[0]))
    basis[0] = trivial
    noise = _start_vectors(weights, mask)
    basis[1] = _orthogonal_unit(_first_vector(trivial, noise[0], mask), basis[:1])
    diagonal = torch.zeros(steps, dtype=torch.float64)
    below = torch.zeros(steps, dtype=torch.float64)
    broken_at = -_SETTLE
    for step in range(steps):
        vector = basis[step + 1]
        image = scale * (weights @ (scale * vector))
        diagonal[step] = torch.dot(image, vector).item()
        image = _orthogonalise(image, basis[: step + 2])
        norm = float(torch.linalg.vector_norm(image))
        last = step + 1 == steps
        broken = norm < tiny
        if (broken and count == 1) or last or (step >= count and step % _CHECK_EVERY == _CHECK_EVERY - 1):
            theta, rotation = torch.linalg.eigh(_tridiagonal(diagonal[: step + 1], below[:step]))
            top = slice(step + 1 - count, step + 1)
            residual = norm * rotation[-1, top].abs().max() if step + 1 >= count else torch.inf
            # After a breakdown further copies of an eigenvalue can hide outside the subspace: give them time to show.
            settled = count == 1 or step - broken_at >= _SETTLE
            if last or (settled and residual < _TOLERANCE[weights.dtype]):
                chosen = rotation[:, top].flip(1).T.to(basis)
                return theta[top].flip(0).to(basis), chosen @ basis[1 : step + 2]
        if broken:
            norm, broken_at = 0.0, step
            image = _orthogonal_unit(noise[1 + step % 2].roll(step) * mask, basis[: step + 2])
            basis[step + 2] = image
        else:
            basis[step + 2] = image / norm
        below[step] = norm
    raise AssertionError("unreachable: the last step returns")


def _start_vectors(weights: Tensor, mask: Tensor) -> Tensor:
    # Drawn on the CPU from a generator of its own: the same on every device, and the global one is not touched.
    generator = torch.Generator().manual_seed(0)
    return torch.randn((3, weights.shape[0]), generator=generator).to(weights) * mask


def _first_vector(trivial: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Start near the answer: objects have few similar patches, so the degree already leans towards the cut.

    A little noise keeps it from being orthogonal to the answer; it saves a third of the steps.
    """
    degree = trivial.square()
    lean = (degree - degree.sum() / mask.sum()) * mask
    size = torch.linalg.vector_norm(lean)
    unit_noise = noise / torch.linalg.vector_norm(noise)
    return torch.where(size > 1e-3 * torch.linalg.vector_norm(degree), lean / size + 0.1 * unit_noise, unit_noise)


def _orthogonalise(vector: Tensor, basis: Tensor) -> Tensor:
    # Classical Gram-Schmidt, twice: once is not enough in floating point, twice is.
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


def _orthogonal_unit(vector: Tensor, basis: Tensor) -> Tensor:
    vector = _orthogonalise(vector, basis)
    return vector / torch.linalg.vector_norm(vector)


def _tridiagonal(diagonal: Tensor, below: Tensor) -> Tensor:
    return torch.diag(diagonal) + torch.diag(below, 1) + torch.diag(below, -1)


def _fix_signs(vectors: Tensor) -> Tensor:
    magnitude = vectors.abs()
    largest = magnitude >= magnitude.amax(1, keepdim=True) * (1 - 1e-5)
    first = largest.to(torch.uint8).argmax(1, keepdim=True)
    return torch.where(vectors.gather(1, first) < 0, -vectors, vectors)
