import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from figureground.spectral import cosine_affinity, fiedler_vector, ncut_value, smallest_eigenvectors
from figureground.spectral.ncut import _solve, largest_by_squaring
from tests.conftest import golden
from tests.reference import ncut as reference


def random_affinity(n: int, seed: int, groups: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, 8, generator=generator)
    features = centres[torch.arange(n) % groups] + 0.7 * torch.randn(n, 8, generator=generator)
    return cosine_affinity(features, tau=0.2)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 60), seed=st.integers(0, 10_000))
def test_eigenvalue_and_scale_match_the_dense_solver(n: int, seed: int) -> None:
    affinity = random_affinity(n, seed)
    values, vectors = smallest_eigenvectors(affinity, 1)
    expected, _ = reference.eigenpairs(affinity.numpy(), 1)
    assert values[0].item() == pytest.approx(expected[0], abs=1e-5)
    y, w = vectors[0].double(), affinity.double()
    degree = w.sum(1)
    assert (y * degree * y).sum().item() == pytest.approx(1, abs=1e-4)
    # It solves the equation itself, whatever the multiplicity of the eigenvalue.
    residual = degree * y - w @ y - values[0].double() * degree * y
    assert (residual / degree.sqrt()).norm() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_vectors_match_the_dense_solver(dtype: torch.dtype) -> None:
    affinity = random_affinity(200, 1, groups=6).to(dtype)
    values, vectors = smallest_eigenvectors(affinity, 4)
    expected_values, expected = reference.eigenpairs(affinity.numpy(), 4)
    np.testing.assert_allclose(values.numpy(), expected_values, atol=1e-5)
    cosines = (
        np.abs((vectors.numpy() * expected).sum(1)) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    )
    assert (cosines > 0.9999).all()
    assert vectors.dtype == dtype


@pytest.mark.parametrize("path", golden("cut/*.npz"))
def test_golden_vectors_and_splits(path) -> None:
    file = np.load(path)
    features = torch.from_numpy(file["features"]).flatten(0, 1)
    for tau, expected in ((0.2, file["tokencut_vector"]), (0.15, file["maskcut_eigenvectors"][0].ravel())):
        vector = fiedler_vector(cosine_affinity(features, tau=tau)).double()
        expected = torch.from_numpy(expected).double()
        assert torch.cosine_similarity(vector, expected, dim=0) > 0.99999
        assert torch.equal(vector > vector.mean(), expected > expected.mean())


def test_sign_is_fixed() -> None:
    for seed in range(20):
        vector = fiedler_vector(random_affinity(30, seed))
        assert vector[vector.abs().argmax()] > 0
    # Two equal parts: the magnitudes tie, and the first entry decides.
    two = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).clamp(min=1e-5)
    vector = fiedler_vector(two)
    assert (vector[:4] > 0).all()
    assert (vector[4:] < 0).all()


def test_batch_equals_one_by_one_and_keeps_shape() -> None:
    stack = torch.stack([random_affinity(40, seed) for seed in range(3)])
    together = fiedler_vector(stack)
    assert together.shape == (3, 40)
    for one, affinity in zip(together, stack, strict=True):
        assert torch.equal(one, fiedler_vector(affinity))


def test_same_answer_twice_and_global_generator_untouched() -> None:
    affinity = random_affinity(50, 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = fiedler_vector(affinity)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(first, fiedler_vector(affinity))


def test_live_patches_are_a_graph_of_their_own() -> None:
    affinity = random_affinity(60, 4)
    live = torch.rand(60, generator=torch.Generator().manual_seed(0)) > 0.4
    masked = fiedler_vector(affinity, live)
    alone = fiedler_vector(affinity[live][:, live])
    assert (masked[~live] == 0).all()
    assert torch.cosine_similarity(masked[live], alone, dim=0).abs() > 0.9999


class TestDegenerate:
    def test_fewer_than_two_patches_have_no_cut(self) -> None:
        assert fiedler_vector(torch.ones(1, 1)).tolist() == [0]
        live = torch.tensor([True, False, False])
        assert fiedler_vector(torch.ones(3, 3), live).tolist() == [0, 0, 0]
        assert fiedler_vector(torch.ones(3, 3), torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]

    @pytest.mark.parametrize("n", [2, 3, 4])
    def test_tiny_graphs(self, n: int) -> None:
        affinity = torch.full((n, n), 1e-5)
        affinity.fill_diagonal_(1)
        affinity[0, 1] = affinity[1, 0] = 0.9 if n > 2 else 1e-5
        values, vectors = smallest_eigenvectors(affinity, n + 1)
        expected, _ = reference.eigenpairs(affinity.numpy(), n - 1)
        np.testing.assert_allclose(values[: n - 1], expected, atol=1e-5)
        assert values[n - 1 :].tolist() == [2, 2]
        assert not vectors[n - 1 :].any()

    def test_uniform_graph_gives_a_fixed_vector_without_structure(self) -> None:
        values, vectors = smallest_eigenvectors(torch.ones(25, 25), 3)
        np.testing.assert_allclose(values, 1, atol=1e-5)
        assert torch.isfinite(vectors).all()
        assert vectors.sum(1).abs().max() < 1e-4
        gram = vectors @ vectors.T * 25
        np.testing.assert_allclose(gram, np.eye(3), atol=1e-4)

    def test_parts_without_edges_between_them(self) -> None:
        parts = torch.block_diag(*[torch.ones(10, 10)] * 4)
        values, vectors = smallest_eigenvectors(parts, 3)
        np.testing.assert_allclose(values, 0, atol=1e-5)
        # Every vector is constant on every part, and together they tell all four parts apart.
        by_part = vectors.reshape(3, 4, 10)
        np.testing.assert_allclose(by_part.std(2), 0, atol=1e-4)
        assert torch.linalg.matrix_rank(by_part[..., 0], atol=1e-3) == 3

    def test_parts_joined_by_the_floor_are_split_cleanly(self) -> None:
        parts = torch.block_diag(*[torch.ones(size, size) for size in (30, 50, 70, 90)]).clamp(min=1e-5)
        vector = fiedler_vector(parts)
        side = vector > vector.mean()
        for part in side.split([30, 50, 70, 90]):
            assert part.all() or not part.any()

    def test_isolated_patch_is_an_error(self) -> None:
        affinity = torch.ones(4, 4)
        affinity[2] = affinity[:, 2] = 0
        with pytest.raises(ValueError, match="isolated"):
            fiedler_vector(affinity)

    def test_bad_weights_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="finite"):
            fiedler_vector(torch.full((4, 4), float("nan")))
        with pytest.raises(ValueError, match="negative"):
            fiedler_vector(-torch.ones(4, 4))
        with pytest.raises(ValueError, match="At least one"):
            smallest_eigenvectors(torch.ones(4, 4), 0)


def test_graphs_solved_together_are_as_solved_alone() -> None:
    # As on an accelerator: one graph converges at once, one late, and one leaves before it has begun.
    parts = torch.block_diag(*[torch.ones(15, 15)] * 4).clamp(min=1e-5)
    stack = torch.stack([*(random_affinity(60, seed) for seed in range(4)), parts, random_affinity(60, 9)])
    live = torch.rand(6, 60, generator=torch.Generator().manual_seed(1)) > 0.2
    live[4], live[5] = True, False
    live[5, 7] = True
    live[3, 5:] = False
    for count in (1, 3):
        values, vectors = _solve(stack, live, count)
        alone = [_solve(graph[None], own[None], count) for graph, own in zip(stack, live, strict=True)]
        torch.testing.assert_close(values, torch.cat([value for value, _ in alone]), atol=1e-5, rtol=0)
        for index in (0, 1, 2, 3):
            for one, other in zip(vectors[index], alone[index][1][0], strict=True):
                assert bool(one.any()) == bool(other.any())
                assert not one.any() or torch.cosine_similarity(one, other, dim=0) > 0.9999
        assert values[5].tolist() == [2] * count
        assert not vectors[5].any()


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 40), seed=st.integers(0, 10_000))
def test_squaring_finds_the_largest_eigenvalue(size: int, seed: int) -> None:
    drawn = torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrices = drawn + drawn.mT
    matrices = matrices / torch.linalg.matrix_norm(matrices, ord=2)[:, None, None]
    values, vectors = largest_by_squaring(matrices)
    torch.testing.assert_close(values[:, 0], torch.linalg.eigvalsh(matrices)[:, -1], atol=1e-9, rtol=0)
    residuals = matrices @ vectors.mT - values[:, None] * vectors.mT
    assert residuals.abs().max() < 1e-7


def test_ncut_value_of_a_batch_is_that_of_each() -> None:
    stack = torch.stack([random_affinity(30, seed) for seed in range(3)])
    sides = torch.rand(3, 30, generator=torch.Generator().manual_seed(2)) > 0.5
    sides[1] = False
    together = ncut_value(stack, sides)
    assert together.tolist() == pytest.approx([float(ncut_value(*one)) for one in zip(stack, sides, strict=True)])
    assert together[1] == 2


def test_ncut_value_is_the_definition() -> None:
    affinity = random_affinity(20, 7)
    side = torch.arange(20) < 8
    assert float(ncut_value(affinity, side)) == pytest.approx(reference.ncut(affinity.numpy(), side.numpy()), rel=1e-5)
    assert ncut_value(affinity, torch.zeros(20, dtype=torch.bool)) == 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_accelerator_agrees() -> None:
    affinity = random_affinity(300, 2)
    there = fiedler_vector(affinity.cuda()).cpu()
    assert torch.cosine_similarity(there, fiedler_vector(affinity), dim=0) > 0.99999


def test_a_multiple_eigenvalue_is_found_as_often_as_it_is_there() -> None:
    # Seven equal parts that the floor joins: six eigenvectors with one and the same small eigenvalue.
    parts = torch.block_diag(*[torch.ones(12, 12)] * 7).clamp(min=1e-5)
    values, vectors = smallest_eigenvectors(parts, 6)
    expected, _ = reference.eigenpairs(parts.numpy(), 6)
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert torch.linalg.matrix_rank(vectors, atol=1e-3) == 6
