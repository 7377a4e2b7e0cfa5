"""DropLoss, soft targets and the losses of a stage against references that take one proposal at a time."""

import functools

import pytest
import torch

from figureground.detectors.box_head import BoxCascade, BoxHeadConfig, StageConfig
from figureground.detectors.boxes import clip, decode
from figureground.detectors.losses import box_loss, classification_loss, drop_loss, mask_loss, soft_targets
from figureground.detectors.matching import Matches, match
from figureground.detectors.pooling import pool
from figureground.detectors.targets import Truth
from tests.detectors.scenes import random_boxes
from tests.reference import drop_loss as reference

SIZE = (100, 100)


def truth_of(count: int, generator: torch.Generator) -> Truth:
    boxes = clip(random_boxes(count, generator, 90.0), SIZE)
    return Truth(
        boxes,
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count, *SIZE, dtype=torch.bool),
        torch.rand(count, generator=generator),
    )


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("objects", range(9))
def test_drop_loss(objects, threshold):
    generator = torch.Generator().manual_seed(objects)
    boxes, truth = random_boxes(300, generator), random_boxes(objects, generator, 60.0)
    found = drop_loss(boxes.requires_grad_(), truth, threshold)
    assert found.tolist() == reference.weights(boxes.tolist(), truth.tolist(), threshold)
    assert not found.requires_grad
    assert 0 < found.sum() < 300 or objects == 0


def test_drop_loss_knows_every_object():
    """Whichever objects the proposals stand for, and however many there are of each."""
    truth = torch.tensor([[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(8)])
    assert drop_loss(truth, truth[torch.randperm(8, generator=torch.Generator().manual_seed(0))]).tolist() == [1] * 8
    assert drop_loss(truth, truth[:7]).tolist() == [1] * 7 + [0]


def test_an_image_without_objects_is_not_dropped():
    assert drop_loss(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.zeros(0, 4), 0.5).tolist() == [1]


def test_soft_targets_weigh_what_stands_for_an_object():
    matches = Matches(
        torch.tensor([1, 0, 1, 0]), torch.tensor([True, True, False, False]), torch.tensor([False, False, True, True])
    )
    assert soft_targets(matches, torch.tensor([0.25, 0.5])).tolist() == [0.5, 0.25, 1, 1]
    assert soft_targets(match(torch.zeros(0, 3), 0.5), torch.zeros(0)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("threshold", [None, 0.01, 0.3])
@pytest.mark.parametrize("objects", [0, 1, 2, 3, 5, 8])
def test_every_stage_of_a_cascade(objects, threshold):
    generator = torch.Generator().manual_seed(objects)
    stages = (StageConfig(iou=0.4), StageConfig(iou=0.6, weights=(20, 20, 10, 10)))
    weigh = None if threshold is None else functools.partial(drop_loss, threshold=threshold)
    cascade = BoxCascade(BoxHeadConfig(pool=2, width=8), stages, 4, 1, weigh)
    for parameter in cascade.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    maps = [torch.rand(2, 4, 100 // s, 100 // s, generator=generator) for s in (4, 8, 16, 32)]
    truths = [truth_of(objects, generator), truth_of(1, generator)]
    boxes = [
        torch.cat([clip(random_boxes(40, generator), SIZE), truth.boxes + torch.tensor([1.0, -1.0, 2.0, 1.0])])
        for truth in truths
    ]
    boxes = [clip(own, SIZE) for own in boxes]
    matched = [match(reference_iou(truth.boxes, own), stages[0].iou) for truth, own in zip(truths, boxes, strict=True)]
    found = cascade.losses(maps, boxes, matched, truths, [SIZE, SIZE])

    for number, (stage, setting) in enumerate(zip(cascade.stages, stages, strict=True), 1):
        counts = [len(own) for own in boxes]
        logits, deltas = (part.detach().split(counts) for part in stage(pool(maps, boxes, 2)))
        predicted = [clip(decode(move, own, setting.weights), SIZE) for move, own in zip(deltas, boxes, strict=True)]
        expected = [0.0, 0.0]
        for image, truth in enumerate(truths):
            of_image = reference.stage_losses(
                logits[image].tolist(),
                deltas[image].tolist(),
                boxes[image].tolist(),
                predicted[image].tolist(),
                truth.boxes.tolist(),
                truth.weights.tolist(),
                setting.iou,
                list(setting.weights),
                threshold,
            )
            share = counts[image] / sum(counts)
            expected = [total + share * part for total, part in zip(expected, of_image, strict=True)]
        assert float(found[f"classification_{number}"].detach()) == pytest.approx(expected[0], rel=1e-4)
        assert float(found[f"box_{number}"].detach()) == pytest.approx(expected[1], rel=1e-4)
        boxes = [own[(own[:, 2:] > own[:, :2]).all(1)] for own in predicted]


def reference_iou(truth: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    rows = [[reference.iou(a, b) for b in boxes.tolist()] for a in truth.tolist()]
    return torch.tensor(rows).reshape(len(truth), len(boxes))


def test_dropped_proposals_have_no_gradient_and_stay_in_the_mean():
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, weights = torch.tensor([0, 1, 1, 1]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    loss = classification_loss(logits, labels, weights)
    loss.backward()
    assert not logits.grad[2:].any()
    assert logits.grad[:2].abs().sum(1).all()
    half = classification_loss(logits[:2], labels[:2], weights[:2])
    assert float(loss.detach()) == pytest.approx(float(half.detach()) / 2)


def test_weights_scale_the_losses_of_boxes_and_masks():
    generator = torch.Generator().manual_seed(0)
    deltas, targets = torch.randn(2, 4, generator=generator), torch.randn(2, 4, generator=generator)
    each = (deltas - targets).abs().sum(1)
    assert box_loss(deltas, targets, torch.tensor([0.5, 2.0]), 8) == (0.5 * each[0] + 2 * each[1]) / 8
    logits = torch.randn(2, 3, 3, generator=generator)
    masks = torch.rand(2, 3, 3, generator=generator) > 0.5
    entropy = [-(logits[i].sigmoid().where(masks[i], 1 - logits[i].sigmoid())).log().mean() for i in (0, 1)]
    found = mask_loss(logits, masks, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(found, (0.5 * entropy[0] + 2 * entropy[1]) / 2)


def test_losses_of_nothing_are_zero_and_connected():
    nothing = torch.zeros(0, 4, requires_grad=True)
    empty = torch.zeros(0)
    masks = torch.zeros(0, 3, 3, requires_grad=True)
    total = box_loss(nothing, torch.zeros(0, 4), empty, 0) + mask_loss(masks, torch.zeros(0, 3, 3).bool(), empty)
    total = total + classification_loss(nothing, torch.zeros(0).long(), empty)
    assert total == 0
    total.backward()
    assert nothing.grad is not None
    assert masks.grad is not None
