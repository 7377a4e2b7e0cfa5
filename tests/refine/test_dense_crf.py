import numpy as np
import pytest
import torch

from figureground.config import build
from figureground.errors import ConfigError
from figureground.refine import DenseCRFConfig, RefineConfig, dense_crf, dense_crf_masks, refine_masks
from figureground.refine.dense_crf import DenseCRF, MeanField, _appearance_kernel, _smoothness_kernel
from tests.conftest import golden
from tests.reference.dense_crf import marginals
from tests.reference.permutohedral import gaussian_filter
from tests.refine.images import DEGENERATE_SIZES, iou, two_tones


@pytest.mark.parametrize("path", golden("refine/*.npz"))
def test_agrees_with_the_published_implementation(path):
    with np.load(path) as case:
        probability = dense_crf(case["image"], case["mask"])
        assert iou(probability > 0.5, case["crf_mask"]) >= 0.999
        assert np.abs(probability.numpy() - case["crf_foreground"]).mean() < 1e-4


def test_is_the_mean_field_of_two_labels():
    image, mask, _ = two_tones(10, 14)
    image, mask = image[:10], mask[:10]
    config = DenseCRFConfig(iterations=3)
    unit = torch.eye(mask.numel())
    lattices = [
        _smoothness_kernel(10, 14, config.gaussian_sxy, image.device)._lattice,
        _appearance_kernel(image[None], config)._lattice,
    ]
    weights = [config.gaussian_compat, config.bilateral_compat]
    kernels = [(w, lattice.filter(unit).T.double().numpy()) for w, lattice in zip(weights, lattices, strict=True)]
    expected = marginals(mask.flatten().numpy(), kernels, 3)
    np.testing.assert_allclose(dense_crf(image, mask, config).flatten().numpy(), expected, atol=1e-4)


def test_approximates_exact_gaussian_kernels():
    image, mask, _ = two_tones(24, 30)
    y, x = np.mgrid[:24, :30].reshape(2, -1)
    colour = image.reshape(-1, 3).numpy()
    features = [np.stack([x, y], 1) / 3, np.column_stack([x / 50, y / 50, colour / 5])]
    kernels = [(w, gaussian_filter(f, np.eye(len(f)))) for w, f in zip((7, 10), features, strict=True)]
    exact = marginals(mask.flatten().numpy(), kernels, 10).reshape(24, 30)
    assert iou(dense_crf(image, mask) > 0.5, exact > 0.5) > 0.98


def test_draws_a_mask_to_the_edges():
    image, mask, box = two_tones()
    assert iou(mask, box) < 0.8
    assert iou(dense_crf(image, mask) > 0.5, box) > 0.99


def test_many_masks_are_as_one_at_a_time_and_repeat_themselves():
    image, mask, box = two_tones()
    masks = torch.stack([mask, box, ~mask])
    together = dense_crf_masks(image, masks)
    assert torch.equal(together, torch.stack([dense_crf(image, one) for one in masks]))
    assert torch.equal(together, dense_crf_masks(image, masks))
    torch.testing.assert_close(together[2], 1 - together[0], atol=1e-4, rtol=0)  # neither label is special
    assert dense_crf_masks(image, masks[:0]).shape == (0, *mask.shape)


def test_images_in_one_lattice_are_as_alone():
    # As on an accelerator: one image has no mask, and another more than the first.
    image, mask, box = two_tones()
    images = torch.stack([image, image.flip(1), 255 - image, image // 2])
    masks, owners = torch.stack([mask, ~mask, box, mask.flip(1)]), torch.tensor([0, 2, 2, 3])
    together = MeanField(images, DenseCRFConfig())(masks, owners)
    alone = [dense_crf(images[owner], one) for one, owner in zip(masks, owners, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=0)
    assert torch.equal(DenseCRF(images)(masks, owners), torch.stack(alone))
    assert MeanField(images, DenseCRFConfig())(masks[:0], owners[:0]).shape == (0, *mask.shape)


def test_threads_change_no_bit(monkeypatch):
    image, mask, box = two_tones()
    masks = torch.stack([mask, box, ~mask, ~box, mask & box, mask | box, mask, box, ~box])
    expected = dense_crf_masks(image, masks)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(dense_crf_masks(image, masks), expected)
    assert torch.equal(dense_crf_masks(image, masks[:2]), expected[:2])


@pytest.mark.parametrize("size", DEGENERATE_SIZES, ids=str)
@pytest.mark.parametrize("value", [0, 255])
def test_empty_stays_empty_and_full_stays_full(size, value):
    flat = torch.full((*size, 3), value, dtype=torch.uint8)
    masks = torch.stack([torch.zeros(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)])
    probability = dense_crf_masks(flat, masks)
    assert probability.isfinite().all()
    assert (probability[0] < 0.01).all()
    assert (probability[1] > 0.99).all()


def test_a_speck_in_a_constant_image_is_smoothed_away():
    mask = torch.zeros(30, 30, dtype=torch.bool)
    mask[15, 15] = True
    assert not (dense_crf(torch.full((30, 30, 3), 90, dtype=torch.uint8), mask) > 0.5).any()


def test_takes_arrays_even_read_only_and_reversed_ones():
    image, mask, _ = two_tones()
    turned, other = image.numpy()[::-1], mask.numpy()[::-1]
    turned.flags.writeable = False
    expected = dense_crf(image.flip(0), mask.flip(0))
    assert torch.equal(dense_crf(turned, other), expected)


def test_without_iterations_the_unary_remains():
    image, mask, _ = two_tones()
    probability = dense_crf(image, mask, DenseCRFConfig(iterations=0))
    torch.testing.assert_close(probability, torch.where(mask, 0.7310586, 0.2689414))


@pytest.mark.parametrize("method", ["dense_crf", "bilateral", "none"])
def test_refine_masks_accepts_what_changed_little(method):
    image, _, box = two_tones()
    ring = box.clone()
    ring[18:22, 26:30] = False
    speck = torch.zeros_like(box)
    speck[0, 0] = True
    masks = torch.stack([ring, torch.zeros_like(box), torch.ones_like(box), speck])
    refined, accepted = refine_masks(image, masks, RefineConfig(method=method))
    assert iou(refined[0], box) > 0.95  # the hole is filled
    assert not refined[1].any()
    assert refined[2].all()
    assert accepted.tolist() == [True, False, True, method == "none"]
    kept, _ = refine_masks(image, masks, RefineConfig(method="none", fill_holes=False))
    assert torch.equal(kept, masks)


def test_refine_masks_drops_below_the_least_iou_and_keeps_at_it():
    image, mask, _ = two_tones()
    ring = torch.ones(40, 56, dtype=torch.bool)
    ring[1:-1, 1:-1] = False  # filling makes it the whole image
    share = ring.float().mean().item()
    for least, expected in ((share - 1e-4, True), (share + 1e-4, False), (0.0, True)):
        config = RefineConfig(method="none", min_iou=least)
        assert refine_masks(image, ring[None], config)[1].item() is expected
    assert refine_masks(image, mask[None] & False, RefineConfig(min_iou=0.0))[1].item() is False
    refined, accepted = refine_masks(image, mask[None][:0])
    assert (refined.shape, accepted.shape) == ((0, 40, 56), (0,))


def test_wrong_inputs_and_keys_are_refused():
    image, mask, _ = two_tones()
    with pytest.raises((ValueError, TypeError)):
        dense_crf_masks(image[:, :-1], mask[None])
    with pytest.raises(ValueError, match="at least 1x1"):
        dense_crf_masks(image[:0], mask[None, :0])
    with pytest.raises(ConfigError, match="gaussian_sxy"):
        build(RefineConfig, {"crf": {"gausian_sxy": 3}})
    with pytest.raises(ConfigError, match="bilateral_srgb"):
        build(RefineConfig, {"crf": {"bilateral_srgb": 0}})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("method", ["dense_crf", "bilateral", "none"])
def test_an_accelerator_gives_the_same_masks(method):
    image, mask, box = two_tones()
    masks = torch.stack([mask, box])
    config = RefineConfig(method=method)
    there, _ = refine_masks(image.cuda(), masks.cuda(), config)
    here, _ = refine_masks(image, masks, config)
    assert there.is_cuda
    assert iou(there.cpu(), here) > 0.999
