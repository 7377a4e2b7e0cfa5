"""The one solver that all cuts share: eigenvectors of the normalised cut.

The generalised problem (D - W) y = lambda D y is solved as the largest eigenvectors z of D^-1/2 W D^-1/2 by Lanczos
iteration, y = D^-1/2 z. Neither D, nor D - W, nor the normalised matrix is ever formed: one step reads W once. On an
accelerator the graphs of a batch are solved together.
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
    # A CPU reads one graph from its cache, and the memory does not grow; an accelerator is only busy with many.
    together = 1 if weights.device.type == "cpu" else max(len(weights), 1)
    parts = zip(weights.split(together), alive.split(together), strict=True)
    pairs = [_solve(w, a, count) for w, a in parts]
    values = torch.cat([value for value, _ in pairs])
    vectors = torch.cat([vector for _, vector in pairs])
    return values.reshape(*batch, count), vectors.reshape(*batch, count, n)


def ncut_value(
    affinity: Float[Tensor, "*batch N N"],
    partition: Bool[Tensor, "*batch N"],
    live: Bool[Tensor, "*batch N"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Normalised cut of a partition, in [0, 2]: cut/vol(A) + cut/vol(B); 2 if a side is empty."""
    alive = torch.ones_like(partition) if live is None else live
    sides = torch.stack([partition & alive, ~partition & alive], -2).to(affinity.dtype)
    volumes = sides @ affinity @ sides.mT
    total = volumes.sum(-1)
    cut = (volumes[..., 0, 1, None] / total).sum(-1)
    return torch.where((total > 0).all(-1), cut, 2.0)


def _solve(
    weights: Float[Tensor, "B N N"], live: Bool[Tensor, "B N"], count: int
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K N"]]:
    """Eigenpairs of graphs of one size; see :func:`smallest_eigenvectors`."""
    mask = live.to(weights.dtype)
    degree = _product(weights, mask) * mask
    if not bool((torch.isfinite(degree) & (degree >= 0)).all()):
        raise ValueError("Graph weights must be finite and not negative.")
    if bool((live & (degree <= 0)).any()):
        raise ValueError("A patch has no edge to any other: an isolated patch has no normalised cut (use eps > 0).")
    scale = torch.where(live, degree, torch.inf).rsqrt()
    trivial = degree.sqrt() / degree.sum(1, keepdim=True).sqrt().clamp(min=torch.finfo(degree.dtype).tiny)
    ritz_values, ritz_vectors = _Lanczos(weights, scale, trivial, mask, count).run()
    return (1 - ritz_values).clamp(0, 2), _fix_signs(ritz_vectors * scale[:, None])


class _Lanczos:
    """Largest ``count`` eigenpairs of ``scale * W * scale`` on the live nodes, orthogonal to ``trivial``.

    All graphs take a step together. A graph that has converged is written down; once half have, they are left out of
    further steps, so that the slowest does not make all of them wait.
    """

    def __init__(self, weights: Tensor, scale: Tensor, trivial: Tensor, mask: Tensor, count: int) -> None:
        self.weights, self.scale, self.mask, self.count = weights, scale, mask, count
        # Pairs that do not exist have the worst value there is and no vector.
        self.values = weights.new_full((len(mask), count), -1.0)
        self.vectors = weights.new_zeros((len(mask), count, mask.shape[1]))
        self.dimension = mask.sum(1).long() - 1
        self.steps = min(_MAX_STEPS, int(self.dimension.max()))
        # A breakdown (an invariant subspace) is a residual at the level of rounding.
        self.tiny = 100 * torch.finfo(weights.dtype).eps
        self.basis = weights.new_zeros((len(mask), max(self.steps, 1) + 1, mask.shape[1]))
        self.basis[:, 0] = trivial
        self.noise = _start_vectors(weights)
        self.basis[:, 1] = self._orthogonal_unit(_first_vector(trivial, self.noise[0] * mask, mask), 1)
        double = {"dtype": torch.float64, "device": weights.device}
        self.diagonal = torch.zeros(len(mask), max(self.steps, 1), **double)
        self.below = torch.zeros_like(self.diagonal)
        self.broken_at = torch.full_like(self.dimension, -_SETTLE)
        # The places, among all graphs, of those that are still iterated, and which of these have converged.
        self.place = torch.arange(len(mask), device=weights.device)
        self.finished = self.dimension < 1

    def run(self) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K N"]]:
        """Values in falling order, and unit vectors."""
        check = _CHECK_EVERY
        for step in range(self.steps):
            self._step(step)
            if step + 1 == self.steps or (step >= self.count and step + 1 >= check):
                check = step + 1 + max(_CHECK_EVERY, step // 4)
                if self._finish(step + 1):
                    break
        return self.values, self.vectors

    def _step(self, step: int) -> None:
        vector = self.basis[:, step + 1]
        image = self.scale * _product(self.weights, self.scale * vector)
        self.diagonal[:, step] = (image * vector).sum(1)
        image = _orthogonalise(image, self.basis[:, : step + 2])
        norm = torch.linalg.vector_norm(image, dim=1)
        self.below[:, step] = norm
        if step + 1 == self.steps:
            return
        image = image / norm.clamp(min=self.tiny)[:, None]
        # With one pair wanted a breakdown is the end, seen at the next check. Else further copies of an eigenvalue can
        # hide outside the subspace: the iteration goes on from a new direction.
        broken = norm < self.tiny
        if self.count > 1 and bool(broken.any()):
            fresh = self._orthogonal_unit(self.noise[1 + step % 2].roll(step) * self.mask, step + 2)
            image = torch.where(broken[:, None], fresh, image)
            self.below[:, step].masked_fill_(broken, 0)
            self.broken_at = torch.where(broken, step, self.broken_at)
        self.basis[:, step + 2] = image

    def _finish(self, size: int) -> bool:
        """Write down the pairs that have converged in ``size`` steps; whether all have."""
        place = torch.arange(size, device=self.basis.device)
        length = self.dimension.clamp(max=size)
        if self.count == 1:
            broken = self.below[:, :size] < self.tiny
            length = torch.minimum(length, torch.where(broken, place + 1, size).amin(1))
        inside = place < length[:, None]
        # Outside, values below all others, which never come out on top.
        tridiagonal = torch.diag_embed(torch.where(inside, self.diagonal[:, :size], -2.0))
        linked = torch.where(inside[:, 1:], self.below[:, : size - 1], 0.0)
        tridiagonal += torch.diag_embed(linked, 1) + torch.diag_embed(linked, -1)
        theta, rotation = _top(tridiagonal, min(self.count, size))
        last = (length - 1).clamp(min=0)[:, None]
        norm = self.below.gather(1, last)
        residual = (norm * rotation.gather(2, last[:, :, None].expand(-1, rotation.shape[1], 1))[..., 0].abs()).amax(1)
        # After a breakdown the copies need time to show.
        settled = size - 1 - self.broken_at >= (0 if self.count == 1 else _SETTLE)
        over = (length < size) | (length == self.dimension) | (size == self.steps)
        done = over | (settled & (residual < _TOLERANCE[self.weights.dtype]))
        fresh = (done & ~self.finished).nonzero()[:, 0]
        if len(fresh):
            kept = theta.shape[1]
            exists = torch.arange(kept, device=theta.device) < length[fresh, None]
            ritz = rotation[fresh].to(self.basis) @ self.basis[fresh, 1 : size + 1]
            self.values[self.place[fresh], :kept] = torch.where(exists, theta[fresh], -1.0).to(self.values)
            self.vectors[self.place[fresh], :kept] = ritz * exists[..., None]
        self.finished = self.finished | done
        left = int((~self.finished).sum())
        if 0 < left <= len(self.finished) // 2:
            self._keep(~self.finished)
        return left == 0

    def _keep(self, chosen: Tensor) -> None:
        state = ("weights", "scale", "mask", "dimension", "basis", "diagonal", "below", "broken_at", "place")
        for name in (*state, "finished"):
            setattr(self, name, getattr(self, name)[chosen])

    def _orthogonal_unit(self, vectors: Tensor, size: int) -> Tensor:
        vectors = _orthogonalise(vectors, self.basis[:, :size])
        return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp(min=self.tiny**2)


def _top(tridiagonal: Float[Tensor, "B m m"], count: int) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K m"]]:
    """Largest eigenvalues, falling, and their unit vectors.

    An accelerator takes one small eigenproblem after the other, and waits for each; there the one vector that a cut
    needs is found by squaring the matrices until nothing but their largest eigenvalue is left.
    """
    if tridiagonal.device.type == "cpu" or count > 1:
        theta, rotation = torch.linalg.eigh(tridiagonal.cpu())
        top = slice(-count, None)
        pairs = theta[:, top].flip(1), rotation[:, :, top].flip(2).mT
        return pairs[0].to(tridiagonal), pairs[1].to(tridiagonal)
    return largest_by_squaring(tridiagonal)


def largest_by_squaring(matrices: Float[Tensor, "B m m"]) -> tuple[Float[Tensor, "B 1"], Float[Tensor, "B 1 m"]]:
    """The largest eigenvalue of symmetric matrices with eigenvalues in [-2, 1], and a unit vector of it.

    Squared thirty times, a second eigenvalue nearer than some 1e-8 leaves a trace; the vector is then one of both.
    """
    size = matrices.shape[-1]
    power = matrices + 2.5 * torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    for _ in range(10):
        power = power / power.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        for _ in range(3):
            power = power @ power
    column = power.diagonal(dim1=1, dim2=2).argmax(1)
    vectors = power.gather(1, column[:, None, None].expand(-1, 1, size))
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
    return (vectors @ matrices @ vectors.mT)[:, :, 0], vectors


def _start_vectors(weights: Tensor) -> Float[Tensor, "3 N"]:
    # Drawn on the CPU from a generator of its own: the same on every device, and the global one is not touched.
    generator = torch.Generator().manual_seed(0)
    return torch.randn((3, weights.shape[-1]), generator=generator).to(weights)


def _first_vector(trivial: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
    """Start near the answer: objects have few similar patches, so the degree already leans towards the cut.

    A little noise keeps it from being orthogonal to the answer; it saves a third of the steps.
    """
    degree = trivial.square()
    lean = (degree - degree.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)) * mask
    size = torch.linalg.vector_norm(lean, dim=1, keepdim=True)
    unit_noise = noise / torch.linalg.vector_norm(noise, dim=1, keepdim=True).clamp(min=1e-30)
    leans = size > 1e-3 * torch.linalg.vector_norm(degree, dim=1, keepdim=True)
    return torch.where(leans, lean / size + 0.1 * unit_noise, unit_noise)


def _product(matrices: Float[Tensor, "B m N"], vectors: Float[Tensor, "B N"]) -> Float[Tensor, "B m"]:
    if len(matrices) == 1:  # half as long as a batched product of one, on a CPU
        return (matrices[0] @ vectors[0])[None]
    return (matrices @ vectors[:, :, None])[:, :, 0]


def _orthogonalise(vectors: Float[Tensor, "B N"], basis: Float[Tensor, "B m N"]) -> Float[Tensor, "B N"]:
    # Classical Gram-Schmidt, twice: once is not enough in floating point, twice is.
    for _ in range(2):
        vectors = vectors - _product(basis.mT, _product(basis, vectors))
    return vectors


def _fix_signs(vectors: Float[Tensor, "B K N"]) -> Float[Tensor, "B K N"]:
    magnitude = vectors.abs()
    largest = magnitude >= magnitude.amax(-1, keepdim=True) * (1 - 1e-5)
    first = largest.to(torch.uint8).argmax(-1, keepdim=True)
    return torch.where(vectors.gather(-1, first) < 0, -vectors, vectors)
