"""Boxes, anchors, matching, pooling and pasting against slow references."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from figureground.detectors.anchors import anchors
from figureground.detectors.boxes import clip, decode, encode, not_empty
from figureground.detectors.mask_head import crop, paste
from figureground.detectors.matching import match, sample
from figureground.detectors.pooling import pool
from figureground.detectors.rcnn import batch, resize, select
from tests.detectors.scenes import random_boxes
from tests.reference import regions


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (30.0, 30.0, 15.0, 15.0)])
def test_differences_of_boxes(weights, generator):
    references, boxes = random_boxes(50, generator), random_boxes(50, generator)
    deltas = 8 * torch.randn(50, 4, generator=generator)
    expected = [regions.decode(*pair, list(weights)) for pair in zip(deltas.tolist(), references.tolist(), strict=True)]
    torch.testing.assert_close(decode(deltas, references, weights), torch.tensor(expected), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(decode(encode(boxes, references, weights), references, weights), boxes)
    # The same for a batch of images that share their references.
    stacked = decode(torch.stack([deltas, deltas]), torch.stack([references, references]), weights)
    assert torch.equal(stacked[1], decode(deltas, references, weights))


def test_a_box_that_runs_away_stays_finite():
    [box] = decode(torch.tensor([[0.0, 0.0, 1e9, -1e9]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    assert box[2] - box[0] == pytest.approx(1000, rel=1e-4)
    assert not not_empty(box[None])


def test_clipping_and_emptiness():
    boxes = torch.tensor([[-5.0, -5.0, 5.0, 5.0], [90.0, 10.0, 200.0, 200.0], [100.0, 0.0, 120.0, 9.0]])
    clipped = clip(boxes, (50, 100))
    assert clipped.tolist() == [[0, 0, 5, 5], [90, 10, 100, 50], [100, 0, 100, 9]]
    assert not_empty(clipped).tolist() == [True, True, False]
    assert not not_empty(torch.full((1, 4), torch.nan))


def test_anchors():
    expected = regions.anchors((3, 2), 8, 32.0, [0.5, 1.0, 2.0])
    found = anchors((3, 2), 8, 32.0, (0.5, 1.0, 2.0), torch.device("cpu"))
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("rescue", [False, True])
@pytest.mark.parametrize("objects", [0, 1, 2, 5, 8])
def test_matching(objects, rescue, generator):
    truth, boxes = random_boxes(objects, generator), random_boxes(200, generator)
    # One object that nothing overlaps: it rescues no box.
    if objects == 5:
        truth[0] = torch.tensor([300.0, 300.0, 310.0, 310.0])
    overlaps = box_iou(truth, boxes)
    found = match(overlaps, 0.6, 0.3, rescue=rescue)
    expected = regions.matches(overlaps.numpy(), 0.6, 0.3, rescue)
    assert found.positive.tolist() == [kind == "positive" for _, kind in expected]
    assert found.negative.tolist() == [kind == "negative" for _, kind in expected]
    for index, (best, kind) in zip(found.index.tolist(), expected, strict=True):
        assert kind != "positive" or index == best
    if rescue and objects in (1, 2, 8):
        assert set(found.index[found.positive].tolist()) == set(range(objects))


def test_matching_without_a_gap_leaves_nothing_out(generator):
    found = match(box_iou(random_boxes(3, generator), random_boxes(100, generator)), 0.5)
    assert torch.equal(found.positive, ~found.negative)


def test_sampling(generator):
    overlaps = torch.linspace(0, 1, 1000)[None]
    matches = match(overlaps, 0.7, 0.3)
    positive, negative = sample(matches, 64, 0.25, generator)
    assert (len(positive), len(negative)) == (16, 48)
    assert matches.positive[positive].all()
    assert matches.negative[negative].all()
    assert len(set(positive.tolist())) == 16
    # Every candidate is drawn now and then.
    seen = {int(index) for _ in range(200) for index in sample(matches, 64, 0.25, generator)[0]}
    assert seen == set(torch.nonzero(matches.positive)[:, 0].tolist())
    # Where positives are few, negatives fill up; where both are, there are fewer.
    few = match(overlaps[:, :705], 0.7, 0.3)
    assert [len(part) for part in sample(few, 64, 0.25, generator)] == [5, 59]
    assert [len(part) for part in sample(few, 4000, 0.25, generator)] == [5, 300]
    assert [len(part) for part in sample(match(overlaps[:0], 0.7, 0.3), 64, 0.25, generator)] == [0, 64]


def test_sampling_is_the_generator_s():
    matches = match(torch.linspace(0, 1, 1000)[None], 0.7, 0.3)
    draws = [sample(matches, 64, 0.25, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_pooling_takes_the_level_of_each_box():
    """Maps whose values say where they are: image, level, and the coordinates of the place."""
    maps = []
    for level, stride in enumerate((4, 8, 16, 32)):
        y, x = torch.meshgrid(*(torch.arange(512 // stride) * stride + stride / 2,) * 2, indexing="ij")
        one = torch.stack([torch.full_like(x, level), x, y])
        maps.append(torch.stack([one, one + torch.tensor([10.0, 0, 0])[:, None, None]]))
    boxes = [
        torch.tensor([[10.0, 20.0, 40.0, 60.0], [30.0, 40.0, 430.0, 340.0], [50.0, 60.0, 300.0, 310.0]]),
        torch.tensor([[100.0, 100.0, 220.0, 230.0], [16.0, 16.0, 500.0, 490.0]]),
    ]
    pooled = pool(maps, boxes, 2)
    for image, own in enumerate(boxes):
        for box in own.tolist():
            found, pooled = pooled[0], pooled[1:]
            assert torch.allclose(found[0], torch.tensor(10.0 * image + regions.level(box)))
            # Averages of the coordinates over a quarter of the box are the centre of the quarter.
            for (row, column), part in (((0, 0), (0.25, 0.25)), ((0, 1), (0.25, 0.75)), ((1, 0), (0.75, 0.25))):
                x = box[0] + part[1] * (box[2] - box[0])
                y = box[1] + part[0] * (box[3] - box[1])
                assert found[1, row, column] == pytest.approx(x, abs=0.5)
                assert found[2, row, column] == pytest.approx(y, abs=0.5)
    assert len(pooled) == 0
    assert pool(maps, [torch.zeros(0, 4), torch.zeros(0, 4)], 7).shape == (0, 3, 7, 7)


@pytest.mark.parametrize("box", [[3.2, 4.7, 17.9, 12.1], [-4.0, -3.0, 30.0, 9.5], [10.0, 10.0, 10.4, 10.3]])
def test_pasting(box, generator):
    values = torch.rand(2, 7, 7, generator=generator)
    boxes = torch.tensor([box, [0.0, 0.0, 20.0, 16.0]])
    found = paste(values, boxes, (16, 20))
    for soft, own, mask in zip(values.numpy(), boxes.tolist(), found.numpy(), strict=True):
        expected = regions.paste(soft, own, (16, 20))
        sure = np.abs(expected - 0.5) > 1e-4
        np.testing.assert_array_equal(mask[sure], (expected >= 0.5)[sure])


def test_pasting_in_parts_is_the_same(generator, monkeypatch):
    values, boxes = torch.rand(9, 7, 7, generator=generator), random_boxes(9, generator, 40.0)
    whole = paste(values, boxes, (40, 40))
    assert whole.any(0).sum() > 200
    monkeypatch.setattr("figureground.detectors.mask_head._PASTED_AT_ONCE", 2 * 40 * 40)
    assert torch.equal(paste(values, boxes, (40, 40)), whole)
    assert paste(values[:0], boxes[:0], (40, 40)).shape == (0, 40, 40)


def test_cropping_a_mask():
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[1, 10:30, 20:40] = True
    # All of the object; its right half; its lower right quarter in the upper left of the box; nothing; another mask.
    boxes = torch.tensor(
        [[20, 10, 40, 30], [30, 10, 50, 30], [30, 20, 50, 40], [0, 0, 19, 9], [20, 10, 40, 30]]
    ).float()
    found = crop(masks, boxes, torch.tensor([1, 1, 1, 1, 0]), 4)
    assert found[0].all()
    assert found[1].tolist() == [[True, True, False, False]] * 4
    assert found[2].int().tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 0, 0]] * 2
    assert not found[3:].any()
    assert crop(masks[:0], boxes[:0], torch.zeros(0, dtype=torch.int64), 4).shape == (0, 4, 4)


def test_pasting_undoes_cropping(generator):
    y, x = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
    masks = ((y - 40) ** 2 + (x - 30) ** 2 < 20**2)[None]
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    again = paste(crop(masks, boxes, torch.tensor([0]), 28).float(), boxes, (80, 80))
    assert (again & masks).sum() / (again | masks).sum() > 0.95


def test_selection(generator):
    boxes = random_boxes(60, generator)
    scores = torch.rand(60, 2, generator=generator)
    boxes[7, 2] = boxes[7, 0]
    found, ranked, labels = select(boxes, scores, 0.3, 0.5, 100)
    for category in (0, 1):
        usable = [i for i in range(60) if scores[i, category] > 0.3 and i != 7]
        kept = regions.nms(boxes[usable].tolist(), scores[usable, category].tolist(), 0.5)
        assert torch.equal(found[labels == category], boxes[usable][kept])
        assert torch.equal(ranked[labels == category], scores[usable, category][kept])
    assert (ranked.diff() <= 0).all()
    assert torch.equal(select(boxes, scores, 0.3, 0.5, 5)[1], ranked[:5])
    assert [len(part) for part in select(boxes, scores, 1.0, 0.5, 5)] == [0, 0, 0]


def test_a_batch_is_normalised_and_padded(generator):
    images = [torch.rand(3, 40, 70, generator=generator), torch.rand(3, 64, 33, generator=generator)]
    batched = batch(images)
    assert batched.shape == (2, 3, 64, 96)
    expected = (images[0] * 255 - torch.tensor([123.675, 116.28, 103.53])[:, None, None]) / torch.tensor(
        [58.395, 57.12, 57.375]
    )[:, None, None]
    torch.testing.assert_close(batched[0, :, :40, :70], expected)
    assert batched[0, :, 40:].abs().sum() + batched[0, :, :, 70:].abs().sum() + batched[1, :, :, 33:].abs().sum() == 0


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (800, 1067)), ((500, 2000), (333, 1333)), ((1200, 900), (1067, 800))]
)
def test_resizing(size, expected):
    assert resize(torch.zeros(3, *size), 800, 1333).shape == (3, *expected)
    assert resize(torch.zeros(3, *size), None, 1333).shape == (3, *size)
