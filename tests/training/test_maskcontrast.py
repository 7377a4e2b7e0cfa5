"""The model of MaskContrast and its steps; this file is also what two processes run."""

import copy
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from figureground.errors import ConfigError
from figureground.segmenters.losses import prototypes_of
from figureground.segmenters.maskcontrast import Segmenter, SegmenterConfig, TransformerConfig
from figureground.training.distributed import joined, share
from figureground.training.loop import train
from figureground.training.maskcontrast import MaskContrast, MaskContrastConfig
from tests.detectors.scenes import draw

CONFIG = MaskContrastConfig(segmenter=SegmenterConfig(arch="resnet18", rates=(1, 2), width=8), queue=6, momentum=0.9)
SMALL = SegmenterConfig(
    arch="vit", vit=TransformerConfig(patch_size=8, image_size=40, width=24, depth=2, heads=2), width=8
)


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
    wide = Segmenter(CONFIG.segmenter.replace(rates=(12, 24))).eval()
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


def test_saliency_may_be_learned_from_more_than_the_object(learner: MaskContrast) -> None:
    model = copy.deepcopy(learner)
    images, masks, *keys = batch()
    first, same, other = (
        model.losses(images, masks, *keys, generator(7), figures=figures) for figures in (None, masks, ~masks)
    )
    assert torch.equal(first["saliency"], same["saliency"])
    assert not torch.isclose(first["saliency"], other["saliency"])
    assert torch.equal(first["contrast"], other["contrast"])


@pytest.mark.parametrize(
    ("segmenter", "frozen"),
    [
        (SegmenterConfig(arch="resnet18", rates=(1,), width=8), ("conv1", "bn1", "layer1")),
        (SMALL, ("patch_embed", "cls_token", "pos_embed", "blocks.0")),
    ],
    ids=["resnet", "vit"],
)
def test_frozen_stages_stay_as_they_are(segmenter: SegmenterConfig, frozen: tuple[str, ...]) -> None:
    config = CONFIG.replace(segmenter=segmenter, freeze=2, momentum=0.0)
    model = MaskContrast(config, generator()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learned = [parameter for parameter in model.query.parameters() if parameter.requires_grad]
    step(model, torch.optim.SGD(learned, lr=0.1), 0)
    model.update()
    changed = set()
    for network in ("query", "key.module"):
        for name, value in model.state_dict().items():
            inner = name.removeprefix(f"{network}.trunk.")
            if inner == name:
                continue
            if inner.startswith(frozen):
                assert torch.equal(value, before[name]), name
            elif not torch.equal(value, before[name]):
                changed.add(network)
    assert changed == {"query", "key.module"}


def test_what_cannot_be_built() -> None:
    with pytest.raises(ConfigError, match="10 stages are to be frozen, but vit has 3"):
        MaskContrast(CONFIG.replace(segmenter=SMALL, freeze=10), generator())
    patches = TransformerConfig(patch_size=6, stem="conv")
    with pytest.raises(ConfigError, match="halves the side"):
        MaskContrast(CONFIG.replace(segmenter=SegmenterConfig(arch="vit", vit=patches)), generator())


def test_collapse_can_be_told(learner: MaskContrast) -> None:
    model = copy.deepcopy(learner)
    assert model.measure(0)["alike"] < 0.5
    model.queue.prototypes.copy_(model.queue.prototypes[:1].expand(6, -1).clone())
    assert model.measure(0)["alike"] == pytest.approx(1, abs=1e-5)


def test_in_bf16_it_learns_too(learner: MaskContrast) -> None:
    exact = MaskContrast(CONFIG.replace(segmenter=SMALL), generator())
    rough = MaskContrast(CONFIG.replace(segmenter=SMALL, precision="bf16"), generator()).use(torch.device("cpu"))
    one, other = (model.losses(*batch(), generator(7)) for model in (exact, rough))
    for name in one:
        assert other[name].dtype == torch.float32
        assert float(other[name].detach()) == pytest.approx(float(one[name].detach()), rel=0.05)
        assert not torch.equal(one[name], other[name])


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """The batch of all is that of one; a transformer has neither dropout nor statistics of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tests.training.test_maskcontrast", str(tmp_path / "two")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr[-3000:]
    expected = learn(tmp_path / "one")
    begun = MaskContrast(CONFIG.replace(segmenter=SMALL), generator()).state_dict()
    for rank in range(2):
        state = torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
    for name in ("query.embedding.weight", "key.module.embedding.weight", "queue.prototypes"):
        assert not torch.allclose(expected[name], begun[name], atol=1e-4)


def learn(out: Path) -> dict[str, Tensor]:
    """Three steps of the loop on the pictures of this process."""
    model = MaskContrast(CONFIG.replace(segmenter=SMALL), generator())

    def batches(first: int) -> Iterator[list[Tensor]]:
        for number in itertools.count(first):
            yield [tensor.roll(number, 0)[list(share(range(4)))] for tensor in batch()]

    train(
        model,
        lambda views, number: model.losses(*views, generator(number)),
        batches,
        torch.optim.SGD(model.query.parameters(), lr=0.05, momentum=0.9),
        lambda number: 1.0,
        3,
        out,
        batch_size=4,
        checkpoint_every=3,
        after_update=lambda number: model.update(),
    )
    return model.state_dict()


if __name__ == "__main__":
    with joined("cpu") as me:
        torch.save(learn(Path(sys.argv[1])), Path(sys.argv[1]) / f"{me.rank}.pt")
