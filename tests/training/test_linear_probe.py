import torch

from figureground.training.linear_probe import LinearProbeConfig, PixelSamples, learn


def drawn(images: int, views: int, pixels: int) -> PixelSamples:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (images * views * pixels,), generator=generator)
    # Far from zero and of very different spreads; one that never changes.
    vectors = torch.randn(len(labels), 4, generator=generator) * torch.tensor([1, 50, 0.02, 0]) + 7
    vectors[:, 1] += 200 * (labels == 1)
    vectors[:, 2] += 0.2 * (labels == 2)
    places = torch.arange(len(labels))
    return PixelSamples(vectors, labels, places // (views * pixels), places // pixels % views)


def accuracy(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found == true).float().mean())


def test_a_layer_of_features_as_they_are() -> None:
    samples = drawn(12, 2, 20)
    assert (samples.count, samples.views) == (12, 2)
    assert samples.of(3, 1).tolist() == list(range(140, 160))
    layer = learn(LinearProbeConfig(epochs=20), samples, 3, accuracy, torch.Generator().manual_seed(0))
    found = (samples.vectors.float() @ layer.weight.T + layer.bias).argmax(1)
    assert accuracy(found, samples.labels) > 0.95
    assert (layer.held_out, len(layer.curve)) == (1, 20)
    again = learn(LinearProbeConfig(epochs=20), samples, 3, accuracy, torch.Generator().manual_seed(0))
    assert torch.equal(again.weight, layer.weight)


def test_the_epoch_is_that_of_what_is_held_out() -> None:
    samples = drawn(6, 1, 10)
    scores = iter([0.2, 0.7, 0.1, 0.7, 0.3])
    sizes = []

    def measure(found: torch.Tensor, true: torch.Tensor) -> float:
        sizes.append(len(true))
        return next(scores)

    config = LinearProbeConfig(epochs=5, holdout=0.5)
    layer = learn(config, samples, 3, measure, torch.Generator().manual_seed(0))
    assert (layer.epoch, layer.held_out) == (2, 3)
    assert [score for _, score in layer.curve] == [0.2, 0.7, 0.1, 0.7, 0.3]
    assert sizes == [30] * 5
    # It is that of two epochs, and no later one.
    two = learn(config.replace(epochs=2), samples, 3, lambda *_: 0.5 + len(sizes), torch.Generator().manual_seed(0))
    assert two.epoch == 1
    scores = iter([0.2, 0.7])
    torch.testing.assert_close(
        learn(config.replace(epochs=2), samples, 3, measure, torch.Generator().manual_seed(0)).weight, layer.weight
    )
