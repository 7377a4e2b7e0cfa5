import itertools

import numpy as np
import pytest
import torch

from figureground.refine import PermutohedralLattice
from figureground.refine.keys import distinct, neighbours, strides
from figureground.refine.permutohedral import _enclosing_simplices, _to_lattice_basis
from figureground.refine.sparse import SparseMatrix, _by_embedding_bag
from tests.reference.permutohedral import filter_points, gaussian_filter


def random_points(count: int, dimensions: int, spread: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, dimensions, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 9])  # in nine dimensions the keys need 64 bits
def test_agrees_with_the_paper_s_own_form(dimensions):
    features = random_points(60, dimensions, 3.0)
    values = random_points(60, 1, 1.0, seed=1).T.contiguous()
    expected = filter_points(features.numpy(), values[0].numpy())
    torch.testing.assert_close(
        PermutohedralLattice(features).filter(values)[0], torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(("dimensions", "error"), [(1, 0.02), (2, 0.03), (3, 0.05)])
def test_approximates_a_gaussian_filter(dimensions, error):
    axis = torch.arange(0, 8 if dimensions > 1 else 80, 0.5)
    features = torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
    values = (features.sum(1) < features.sum(1).median()).float()[None]
    lattice = PermutohedralLattice(features)
    ours = (lattice.filter(values) / lattice.filter(torch.ones_like(values)))[0].numpy()
    exact = gaussian_filter(features, values[0]) / gaussian_filter(features, torch.ones_like(values[0]))
    assert np.abs(ours - exact).mean() < error


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_corners_enclose_their_point(dimensions):
    features = random_points(200, dimensions, 20.0) - 10
    corners, weights, steps = _enclosing_simplices(features)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(200))
    keys, cells = corners.clone(), []
    for step in steps:
        cells.append(keys.div(step, rounding_mode="floor"))
        keys = keys % step
    inside = (torch.stack(cells, 2) * weights[:, :, None]).sum(1)
    points = _to_lattice_basis(features)
    torch.testing.assert_close(inside - points, (points.amin(0).floor() - 1).neg().expand(200, -1), atol=1e-3, rtol=0)


def test_filters_many_values_as_one_at_a_time_and_repeats_itself():
    features = random_points(500, 5, 4.0)
    values = random_points(3, 500, 1.0, seed=2)
    together = PermutohedralLattice(features).filter(values)
    assert torch.equal(together, PermutohedralLattice(features).filter(values))
    lattice = PermutohedralLattice(features)
    assert torch.equal(together, torch.cat([lattice.filter(row[None]) for row in values]))
    assert lattice.filter(values[:0]).shape == (0, 500)


@pytest.mark.parametrize(
    "features", [torch.zeros(0, 2), torch.full((3, 2), torch.nan), torch.tensor([[0.0], [1e9]])], ids=str
)
def test_refuses_features_without_a_place(features):
    with pytest.raises(ValueError, match=r"lattice|deviations"):
        PermutohedralLattice(features)


def test_strides_tell_all_cells_apart_and_refuse_to_overflow():
    extent = [3, 4, 5]
    keys = {
        sum(c * s for c, s in zip(cell, strides(extent), strict=True))
        for cell in itertools.product(*map(range, extent))
    }
    assert keys == set(range(60))
    with pytest.raises(ValueError, match="62 bits"):
        strides([2**31, 2**31])
    with pytest.raises(ValueError, match="62 bits"):
        PermutohedralLattice(random_points(4, 12, 1000.0))


def test_distinct_and_neighbours_as_by_hand():
    keys, place = distinct(torch.tensor([[7, 3], [4, 7]]))
    assert keys.tolist() == [3, 4, 7]
    assert place.tolist() == [[2, 0], [1, 2]]
    assert neighbours(keys, 1).tolist() == [[3, 1], [0, 3], [3, 3], [3, 3]]
    assert neighbours(keys, -3).tolist() == [[3, 3], [2, 3], [3, 1], [3, 3]]


def test_sparse_products_of_accelerators_are_those_of_scipy():
    generator = torch.Generator().manual_seed(3)
    columns = torch.randint(0, 6, (9, 3), generator=generator).int()  # repeats, and perhaps an empty column
    matrix = SparseMatrix.from_rows(columns, torch.rand(9, 3, generator=generator), 7)
    dense = torch.zeros(9, 7).index_put_((torch.arange(9)[:, None], columns.long()), matrix.values.view(9, 3), True)
    right, left = torch.rand(2, 7, generator=generator), torch.rand(2, 9, generator=generator)
    torch.testing.assert_close(matrix.matvec(right), right @ dense.T)
    torch.testing.assert_close(matrix.rmatvec(left), left @ dense)
    torch.testing.assert_close(_by_embedding_bag(matrix, right), right @ dense.T)
    torch.testing.assert_close(_by_embedding_bag(matrix.transposed, left), left @ dense)
    assert _by_embedding_bag(matrix, right[:0]).shape == (0, 9)


def test_long_rows_are_summed_in_pieces():
    generator = torch.Generator().manual_seed(4)
    columns = torch.randint(0, 3, (9000, 2), generator=generator).int()  # some 6000 entries a row of the transpose
    matrix = SparseMatrix.from_rows(columns, torch.rand(9000, 2, generator=generator), 4)
    pieces = matrix.transposed.in_pieces
    assert len(pieces) == 3
    assert max(int(piece.starts.diff().max()) for piece in pieces) <= 64
    values = torch.rand(2, 9000, generator=generator)
    torch.testing.assert_close(_by_embedding_bag(matrix.transposed, values), matrix.rmatvec(values), rtol=1e-5, atol=0)
    assert matrix.in_pieces == [matrix]


def test_points_of_different_images_never_meet():
    features = random_points(120, 3, 4.0)
    images = torch.arange(3).repeat_interleave(40)
    values = random_points(2, 120, 1.0, seed=1)
    together = PermutohedralLattice(features, images).filter(values)
    alone = [
        PermutohedralLattice(own).filter(part.contiguous())
        for own, part in zip(features.split(40), values.split(40, dim=1), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone, 1))
