"""What every discovery method must do, run over all of them and all their presets."""

from dataclasses import replace

import pytest
import torch

from figureground.errors import ConfigError, UsageError
from figureground.ops.masks import mask_iou, masks_to_boxes
from figureground.proposals import METHODS, create
from figureground.structures import PatchFeatures


def _every(baselines: bool = True) -> pytest.MarkDecorator:
    """A test of every method and preset, those skipped that lack something here."""
    cases = []
    for name, method in METHODS.items():
        marks = []
        try:
            method.check_here(with_attention=True)
        except UsageError as error:
            marks.append(pytest.mark.skip(reason=error.message))
        if method.BASELINE and not baselines:
            marks.append(pytest.mark.skip(reason=f"{name} is a baseline: it is not expected to find anything"))
        cases += [pytest.param(name, preset, marks=marks, id=f"{name}-{preset}") for preset in method.PRESETS]
    return pytest.mark.parametrize(("name", "preset"), cases)


every = _every()
every_but_baselines = _every(baselines=False)


def scene(
    h: int = 14, w: int = 20, objects: int = 1, seed: int = 0
) -> tuple[PatchFeatures, torch.Tensor, torch.Tensor]:
    """Features, pixels and true masks of bright squares on a dark ground."""
    generator = torch.Generator().manual_seed(seed)
    # Features lean towards or away from each other, as a backbone's do; LOST goes by that sign.
    kinds = torch.eye(16)[: objects + 1]
    kinds = kinds - kinds.mean(0)
    which = torch.zeros(h, w, dtype=torch.long)
    for index in range(objects):
        left = 3 + index * (w // objects)
        which[4 : h - 4, left : left + w // objects - 5] = index + 1
    values = kinds[which] + 0.05 * torch.randn(h, w, 16, generator=generator)
    colours = torch.rand(objects + 1, 3, generator=generator)
    colours[0] = 0.1
    pixels = colours[which].permute(2, 0, 1).repeat_interleave(8, 1).repeat_interleave(8, 2)[None]
    truth = torch.stack([which == index + 1 for index in range(objects)])
    return PatchFeatures(values[None], 8, (h * 8, w * 8)), pixels, truth


def fitted(name: str, features: PatchFeatures) -> PatchFeatures:
    """The same features, with CLS attention for the methods that cannot do without: most of it off the ground.

    The ground is what is like the first patch; 62 % of the attention, shared evenly, is on the rest.
    """
    if not METHODS[name].NEEDS_ATTENTION:
        return features
    values = features.values.flatten(1, 2).float()
    distance = (values - values[:, :1]).norm(dim=2)
    far = (distance > 0.5 * distance.amax(1, keepdim=True)).float()
    near = 1 - far
    attention = 0.62 * far / far.sum(1, keepdim=True).clamp(min=1) + 0.38 * near / near.sum(1, keepdim=True).clamp(
        min=1
    )
    return replace(features, cls_attention=attention[:, None].expand(-1, 6, -1))


@every_but_baselines
def test_one_square_is_found(name: str, preset: str) -> None:
    features, pixels, truth = scene()
    for images in (pixels,) if METHODS[name].NEEDS_IMAGES else (pixels, None):
        [found] = create(name, preset).propose(fitted(name, features), images)
        assert mask_iou(found.masks[:1], truth).item() > 0.9


@every
def test_what_is_returned(name: str, preset: str) -> None:
    features, pixels, _ = scene(objects=2)
    [found] = create(name, preset).propose(fitted(name, features), pixels)
    assert found.masks.shape[1:] == (14, 20)
    assert len(found) > 0
    assert found.masks.flatten(1).any(1).all()
    assert torch.equal(found.boxes, masks_to_boxes(found.masks))
    assert (found.scores.diff() <= 0).all()
    assert (found.labels == 1).all()


@every
def test_the_same_again_and_a_batch_is_its_images(name: str, preset: str) -> None:
    scenes = [scene(seed=seed, objects=1 + seed) for seed in range(2)]
    method = create(name, preset)
    values = torch.cat([features.values for features, _, _ in scenes])
    batch = fitted(name, PatchFeatures(values, 8, (112, 160)))
    together = method.propose(batch, torch.cat([pixels for _, pixels, _ in scenes]))
    for found, (features, pixels, _) in zip(together, scenes, strict=True):
        [alone] = method.propose(fitted(name, features), pixels)
        assert torch.equal(found.masks, alone.masks)
        # A network rounds otherwise in a batch.
        torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-6)


@every
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 30), (30, 1), (2, 2), (3, 1)])
def test_maps_of_any_shape(name: str, preset: str, shape: tuple[int, int]) -> None:
    values = torch.randn(1, *shape, 8, generator=torch.Generator().manual_seed(1))
    size = (shape[0] * 8, shape[1] * 8)
    features = fitted(name, PatchFeatures(values, 8, size))
    [found] = create(name, preset).propose(features, torch.rand(1, 3, *size))
    assert found.masks.shape[1:] == shape


@every
def test_constant_features_do_not_break_it(name: str, preset: str) -> None:
    for constant in (torch.ones(1, 6, 9, 4), torch.zeros(1, 6, 9, 4)):
        features = fitted(name, PatchFeatures(constant, 8, (48, 72)))
        [found] = create(name, preset).propose(features, torch.full((1, 3, 48, 72), 0.5))
        assert torch.isfinite(found.scores).all()


@every
def test_not_a_number_is_refused(name: str, preset: str) -> None:
    values = torch.ones(1, 6, 9, 4)
    values[0, 2, 3, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        create(name, preset).propose(PatchFeatures(values, 8, (48, 72)))


@every_but_baselines
def test_half_precision_features(name: str, preset: str) -> None:
    features, pixels, truth = scene()
    half = PatchFeatures(features.values.bfloat16(), 8, features.image_size)
    [found] = create(name, preset).propose(fitted(name, half), pixels)
    assert mask_iou(found.masks[:1], truth).item() > 0.9


def test_names_and_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="Did you mean 'maskcut'"):
        create("maskut")
    with pytest.raises(UsageError, match="no preset 'best'"):
        create("maskcut", preset="best")
    with pytest.raises(ConfigError, match="'tau'"):
        create("maskcut", tua=0.3)
    with pytest.raises(ConfigError, match="tau"):
        create("maskcut", tau=3)
