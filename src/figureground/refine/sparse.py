"""A sparse matrix for products with many dense vectors, the same on every device."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int32, Shaped
from torch import Tensor

# Entries of a row that one thread of an accelerator sums, one after the other.
_LONGEST = 64
# Vectors from which on it pays to have their entries, and not themselves, one after the other in memory.
_SIDE_BY_SIDE = 4


def arranged(vectors: Shaped[Tensor, "K C"]) -> Shaped[Tensor, "K C"]:
    """The same vectors in the order in memory that makes products with them fastest."""
    return vectors.contiguous() if len(vectors) < _SIDE_BY_SIDE else vectors.T.contiguous().T


@dataclass(frozen=True)
class SparseMatrix:
    """Compressed sparse rows, ``R`` by ``C``; repeated columns within a row add up.

    On the CPU a product is SciPy's (measured 2 to 3 times faster than torch's sparse CSR on one thread); elsewhere it
    is ``embedding_bag``, which sums each row in one thread, so that the result is deterministic; long rows are summed
    in pieces, and then the pieces.

    Args:
        starts: Where each row begins in ``columns`` and ``values``, and their length.
        columns: The column of each entry.
        values: The entries, float32 or float64.
        width: The number of columns.
    """

    starts: Int32[Tensor, " S"]
    columns: Int32[Tensor, " E"]
    values: Float[Tensor, " E"]
    width: int

    @classmethod
    def from_rows(cls, columns: Int32[Tensor, "R k"], values: Float[Tensor, "R k"], width: int) -> "SparseMatrix":
        """Make a matrix of which every row has ``k`` entries."""
        rows, k = columns.shape
        if rows * k >= 2**31:
            raise ValueError(f"{rows} rows of {k} entries do not fit 32-bit indices.")
        starts = torch.arange(rows + 1, dtype=torch.int32, device=columns.device) * k
        return cls(starts, columns.reshape(-1), values.reshape(-1), width)

    def matvec(self, vectors: Float[Tensor, "K C"]) -> Float[Tensor, "K R"]:
        """Multiply each of ``K`` vectors by the matrix."""
        if vectors.device.type == "cpu":
            return _by_scipy(self._scipy, vectors)
        return _by_embedding_bag(self, vectors)

    def rmatvec(self, vectors: Float[Tensor, "K R"]) -> Float[Tensor, "K C"]:
        """Multiply each of ``K`` vectors by the transposed matrix."""
        if vectors.device.type == "cpu":
            return _by_scipy(self._scipy.T, vectors)
        return _by_embedding_bag(self.transposed, vectors)

    @cached_property
    def transposed(self) -> "SparseMatrix":
        """The transpose, entries of a row in the order in which they stood."""
        order = self.columns.sort(stable=True).indices
        counts = torch.bincount(self.columns, minlength=self.width).cumsum(0)
        starts = torch.cat([counts.new_zeros(1), counts]).int()
        rows = torch.arange(len(self.starts) - 1, dtype=torch.int32, device=self.starts.device)
        rows = rows.repeat_interleave(self.starts.diff().long())
        return SparseMatrix(starts, rows[order], self.values[order], len(self.starts) - 1)

    @cached_property
    def in_pieces(self) -> list["SparseMatrix"]:
        """Matrices to multiply by one after the other instead of this one; none has a long row."""
        lengths = self.starts.diff()
        if len(lengths) == 0 or int(lengths.max()) <= _LONGEST:
            return [self]
        counts = (lengths + _LONGEST - 1) // _LONGEST
        first = counts.cumsum(0, dtype=torch.int32) - counts
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        pieces = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        starts = torch.cat([self.starts[rows] + _LONGEST * (pieces - first[rows]), self.starts[-1:]])
        ends = torch.cat([first, first[-1:] + counts[-1:]])
        sums = SparseMatrix(ends, pieces, torch.ones_like(pieces, dtype=self.values.dtype), len(rows))
        return [SparseMatrix(starts, self.columns, self.values, self.width), *sums.in_pieces]

    @cached_property
    def _scipy(self) -> scipy.sparse.csr_array:
        parts = (self.values.numpy(), self.columns.numpy(), self.starts.numpy())
        return scipy.sparse.csr_array(parts, shape=(len(self.starts) - 1, self.width))


def _by_scipy(matrix: Any, vectors: Tensor) -> Tensor:
    if len(vectors) >= _SIDE_BY_SIDE:
        # All vectors share one reading of the indices; the result keeps the order in memory for the next product.
        return torch.from_numpy(matrix @ arranged(vectors).T.numpy()).T
    products = np.empty((len(vectors), matrix.shape[0]), dtype=matrix.dtype)
    for product, vector in zip(products, arranged(vectors).numpy(), strict=True):
        product[:] = matrix @ vector
    return torch.from_numpy(products)


def _by_embedding_bag(matrix: SparseMatrix, vectors: Tensor) -> Tensor:
    if len(vectors) == 0:
        return vectors.new_zeros(0, len(matrix.starts) - 1)
    table = vectors.T
    for piece in matrix.in_pieces:
        table = torch.nn.functional.embedding_bag(
            piece.columns,
            table.contiguous(),
            offsets=piece.starts,
            per_sample_weights=piece.values,
            mode="sum",
            include_last_offset=True,
        )
    return table.T
