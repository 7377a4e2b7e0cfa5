"""The permutohedral lattice: Gaussian filtering of N points in d dimensions in time linear in N."""

import itertools
from concurrent.futures import Executor

import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from figureground.refine.keys import distinct, neighbours, strides
from figureground.refine.sparse import SparseMatrix


class PermutohedralLattice:
    """A Gaussian filter of unit standard deviation over fixed points, built once and applied to many values.

    Each point lies in one simplex of the lattice A*_d and shares its value among the d+1 corners (splat); the corners
    are blurred with [1/2, 1, 1/2] along each of the d+1 lattice directions; each point reads its corners (slice).

    Args:
        features: The points, in units of the standard deviation wanted along each axis; finite.
        images: Number, from 0, of the image that each point belongs to: points of different images never meet, as if
            each had a lattice of its own. ``None``: all of one.

    Raises:
        ValueError: If there is no point, a feature is not finite or too far from 0 for a fraction in float32, or the
            points spread over more than 2^62 cells.

    Reference:
        Adams, Baek and Davis, Fast high-dimensional filtering using the permutohedral lattice, Eurographics 2010.
        Deviates: written in the basis of the first d lattice directions, in which the lattice is Z^d and its simplices
        are Kuhn's (sort the fractional parts, step along the axes in falling order), instead of rounding to
        remainder-0 points in the d+1 coordinates: the same simplices and weights, with less work. Vertices are found
        by sorting packed keys instead of a hash table. As in Kraehenbuehl and Koltun's use of it, vertices that no
        point touches do not exist, so that the blur loses what would flow through them.
    """

    def __init__(self, features: Float32[Tensor, "N d"], images: Int64[Tensor, " N"] | None = None) -> None:
        if features.numel() == 0 or not bool(features.isfinite().all()):
            raise ValueError("A permutohedral lattice needs at least one point, and finite features.")
        corners, weights, steps = _enclosing_simplices(features, images)
        keys, places = distinct(corners)
        self.vertices = len(keys)
        self._slice = SparseMatrix.from_rows(places, weights, self.vertices + 1)
        # The d+1 directions add up to zero; the last goes first, as in the published code (the order hardly matters).
        self._blurs = [_blur(keys, step) for step in (-sum(steps), *steps)]

    def filter(self, values: Float32[Tensor, "K N"], pool: Executor | None = None) -> Float32[Tensor, "K N"]:
        """Sum ``exp(-|f_i - f_j|^2 / 2) values_j`` over all points j (i among them), approximately, up to a factor.

        Args:
            values: ``K`` values a point, each filtered by itself.
            pool: Threads that share the ``K`` between them, which changes no bit.

        Returns:
            The sums. The factor is the same for all points; divide by the filtered ones where it matters.
        """
        if pool is not None:
            return torch.cat(list(pool.map(self._filter, values.split(1 if len(values) < 8 else 4))))
        return self._filter(values)

    def _filter(self, values: Float32[Tensor, "K N"]) -> Float32[Tensor, "K N"]:
        at_vertices = self._slice.rmatvec(values)
        for blur in self._blurs:
            at_vertices = blur.matvec(at_vertices)
        return self._slice.matvec(at_vertices)


def _enclosing_simplices(
    features: Float32[Tensor, "N d"], images: Int64[Tensor, " N"] | None = None
) -> tuple[Int[Tensor, "N d+1"], Float32[Tensor, "N d+1"], list[int]]:
    """Keys and barycentric weights of the corners of each point's simplex, and the key step of each basis direction."""
    count, d = features.shape
    points = _to_lattice_basis(features)
    cells = points.floor()
    fractions = points - cells

    low, high = cells.aminmax(dim=0)
    if max(-low.min(), high.max()) >= 2**22:
        raise ValueError("A feature lies millions of standard deviations from 0; widen the kernel.")
    low -= 1  # a margin on both sides: no step from a vertex wraps into another row of cells
    extent = [int(size) for size in (high + 3 - low).tolist()]
    blocks = 1 if images is None else int(images.max()) + 1  # one block of keys an image
    block, *steps = strides([blocks, *extent])
    key_type = torch.int32 if blocks * block < 2**31 else torch.int64  # short keys sort twice as fast
    step = torch.tensor(steps, dtype=key_type, device=features.device)

    place = _falling_order(fractions)
    falling = fractions.new_zeros(count, d + 2)  # 1, then the fractions from the largest, then 0
    falling[:, 0] = 1
    falling.scatter_(1, place, fractions)
    weights = falling[:, :-1] - falling[:, 1:]

    walk = torch.empty(count, d + 1, dtype=key_type, device=features.device)  # the lowest corner, then step by step
    walk[:, 0] = ((cells - low).to(key_type) * step).sum(1)
    if images is not None:
        walk[:, 0] += (images * block).to(key_type)
    walk.scatter_(1, place, step.expand(count, d))
    return walk.cumsum(1, dtype=key_type), weights, steps


def _to_lattice_basis(features: Float32[Tensor, "N d"]) -> Float32[Tensor, "N d"]:
    """Coordinates in the basis of lattice directions, scaled so that one blur per direction has unit deviation."""
    d = features.shape[1]
    axis = torch.arange(d, dtype=torch.float64)
    # Orthogonal axes of the hyperplane sum(x) = 0 in d+1 dimensions (Adams et al., section 3.1): axis i is
    # (1, ..., 1, -(i+1), 0, ..., 0) with i+1 ones, brought to the length (d+1) sqrt(2/3).
    plane = torch.ones(d + 1, d, dtype=torch.float64).triu()
    plane[1:] -= torch.diag(axis + 1)
    plane *= (d + 1) * (2 / 3) ** 0.5 / ((axis + 1) * (axis + 2)).sqrt()
    # Direction j is (1, ..., 1) less d+1 at place j; x = sum_j y_j direction_j gives y_j = (x_0 - x_j) / (d+1).
    basis = (plane[:1] - plane[1:]) / (d + 1)
    return features @ basis.T.to(features)


def _falling_order(values: Float32[Tensor, "N d"]) -> Int64[Tensor, "N d"]:
    """Place, from 1, of each value among the d values of its point, the largest first; equals keep their order."""
    columns = values.unbind(1)
    places = [
        torch.full(column.shape, i + 1, dtype=torch.int8, device=values.device) for i, column in enumerate(columns)
    ]
    for i, j in itertools.combinations(range(len(columns)), 2):
        swapped = (columns[i] < columns[j]).view(torch.int8)
        places[i] += swapped
        places[j] -= swapped
    return torch.stack(places, 1).long()


def _blur(keys: Int[Tensor, " V"], step: int) -> SparseMatrix:
    """The stencil [1/2, 1, 1/2] along one direction; the vertex past the last stands for all absent ones."""
    own = torch.arange(len(keys) + 1, dtype=torch.int32, device=keys.device)
    columns = torch.cat([own[:, None], neighbours(keys, step)], 1)
    stencil = torch.tensor([1, 0.5, 0.5], device=keys.device)
    return SparseMatrix.from_rows(columns, stencil.expand(len(own), 3), len(own))
