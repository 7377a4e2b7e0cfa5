import pytest
import torch

from figureground.spectral import cosine_affinity


def test_binary_weights() -> None:
    features = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0, 0]])
    weights = cosine_affinity(features, tau=0.2, eps=1e-5)
    expected = torch.full((4, 4), 1e-5)
    expected[:2, :2] = 1
    expected[2, 2] = 1
    torch.testing.assert_close(weights, expected)


def test_continuous_weights_are_the_floored_cosine() -> None:
    features = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    weights = cosine_affinity(features, tau=None, eps=0.01)
    cosine = torch.cosine_similarity(features[:, :, None], features[:, None], dim=-1)
    torch.testing.assert_close(weights, cosine.clamp(0.01, 1))


def test_half_precision_features_are_compared_in_single() -> None:
    assert cosine_affinity(torch.ones(3, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="NaN"):
        cosine_affinity(torch.full((3, 2), float("nan")))
    with pytest.raises(ValueError, match="eps"):
        cosine_affinity(torch.ones(3, 2), eps=-1.0)
