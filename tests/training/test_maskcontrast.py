import copy

import pytest
import torch
from torch import Tensor

from figureground.segmenters.losses import prototypes_of
from figureground.segmenters.maskcontrast import Segmenter, SegmenterConfig
from figureground.training.maskcontrast import MaskContrast, MaskContrastConfig
from tests.detectors.scenes import draw

CONFIG = MaskContrastConfig(segmenter=SegmenterConfig(rates=(1, 2), width=8), queue=6, momentum=0.9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures of one object each, and the same mirrored."""
    drawn = [draw(seed, 1, (40, 48)) for seed in range(4)]
    images = torch.stack([picture for picture, _ in drawn])
    masks = torch.stack([target["masks"][0] for _, target in drawn])
    return images, masks, images.flip(3), masks.flip(2)


@pytest.fixture(scope="module")
def learner() -> MaskContrast:
    return MaskContrast(CONFIG, generator())


def test_network_has_stride_8_and_answers_at_the_size_of_the_image(learner: MaskContrast) -> None:
    segmenter = copy.deepcopy(learner.query).eval()
    strides = []
    segmenter.trunk.layer4.register_forward_hook(lambda module, given, made: strides.append(made.shape[2:]))
    with torch.no_grad():
        embedding, saliency = segmenter(batch()[0])
    assert (embedding.shape, saliency.shape) == ((4, 8, 40, 48), (4, 40, 48))
    assert strides == [(5, 6)]
    assert "mean" not in segmenter.state_dict()
    # Rates widen what the head sees: those of the paper need no other weights.
    wide = Segmenter(SegmenterConfig(rates=(12, 24), width=8)).eval()
    wide.load_state_dict(segmenter.state_dict())
    with torch.no_grad():
        assert not torch.allclose(wide(batch()[0])[0], embedding)


def step(model: MaskContrast, optimiser: torch.optim.Optimizer, seed: int) -> dict[str, float]:
    losses = model.losses(*batch(), generator(seed))
    optimiser.zero_grad()
    (losses["contrast"] + losses["saliency"]).backward()
    optimiser.step()
    return {name: float(value.detach()) for name, value in losses.items()}


def test_both_losses_fall(learner: MaskContrast) -> None:
    """For the same keys and queue: a batch that comes again would be its own negative."""
    model = copy.deepcopy(learner)
    optimiser = torch.optim.SGD(model.query.parameters(), lr=0.02, momentum=0.9)
    first, *_, last = (step(model, optimiser, seed) for seed in range(5))
    assert last["contrast"] < first["contrast"] - 0.05
    assert last["saliency"] < 0.85 * first["saliency"]
    assert all(parameter.grad is None for parameter in model.key.parameters())


def test_an_update_moves_the_key_encoder_and_the_queue(learner: MaskContrast) -> None:
    model = copy.deepcopy(learner)
    before = [parameter.clone() for parameter in model.key.parameters()]
    queue = model.queue.prototypes.clone()
    step(model, torch.optim.SGD(model.query.parameters(), lr=0.02), 0)
    with torch.no_grad():
        keys = prototypes_of(model.key(batch()[2])[0], batch()[3])
    assert torch.equal(model.queue.prototypes, queue)
    model.update()
    for old, new, query in zip(before, model.key.parameters(), model.query.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * query)
    assert torch.equal(model.queue.prototypes[4:], queue[4:])
    # The same but for dropout, which the key encoder has, too.
    assert (model.queue.prototypes[:4] * keys).sum(1).min() > 0.5
    # Once is enough.
    model.update()
    assert torch.equal(model.queue.prototypes[4:], queue[4:])


def test_same_draws_same_losses(learner: MaskContrast) -> None:
    model = copy.deepcopy(learner)
    other = MaskContrast(CONFIG, generator(1))
    other.load_state_dict(model.state_dict())
    state = torch.get_rng_state()
    left, right = (each.losses(*batch(), generator(7)) for each in (model, other))
    assert torch.equal(torch.get_rng_state(), state)
    for name in left:
        assert torch.equal(left[name], right[name])
    # What was not updated is not in the queue.
    assert torch.equal(model.queue.prototypes, learner.queue.prototypes)
