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


def test_learning(learner: MaskContrast) -> None:
    """Both losses fall, the key encoder follows slowly, and only steps that were taken enter the queue."""
    model = copy.deepcopy(learner)
    optimiser = torch.optim.SGD(model.query.parameters(), lr=0.02, momentum=0.9)
    history = []
    for step in range(8):
        losses = model.losses(*batch(), generator(step))
        optimiser.zero_grad()
        (losses["contrast"] + losses["saliency"]).backward()
        assert all(parameter.grad is None for parameter in model.key.parameters())
        optimiser.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
        if step == 0:
            before = [parameter.clone() for parameter in model.key.module.parameters()]
            queue = model.queue.prototypes.clone()
            with torch.no_grad():
                keys = prototypes_of(copy.deepcopy(model.key).train()(batch()[2])[0], batch()[3])
        model.update()
        if step == 0:
            moved = zip(before, model.key.module.parameters(), model.query.parameters(), strict=True)
            for old, new, query in moved:
                torch.testing.assert_close(new, 0.9 * old + 0.1 * query)
            assert torch.equal(model.queue.prototypes[4:], queue[4:])
            # The same but for dropout, which the key encoder has, too.
            assert (model.queue.prototypes[:4] * keys).sum(1).min() > 0.5
    for name in ("contrast", "saliency"):
        assert history[-1][name] < 0.8 * history[0][name], history


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
