"""The detectors as a whole, small: losses, gradients, instances, determinism, and whether they learn."""

import pytest
import torch
from torch import nn

from figureground.config import differences
from figureground.detectors import DETECTORS, configure, create
from figureground.detectors.rcnn import batch
from figureground.detectors.resnet import ResNetConfig, ResNetPyramid
from figureground.errors import ConfigError, UsageError
from figureground.ops.masks import mask_iou
from tests.detectors.scenes import draw

KINDS = ("mask_rcnn", "cascade_mask_rcnn", "vitdet")
NAMES = {
    "mask_rcnn": {"objectness", "proposal_box", "classification", "box", "mask"},
    "cascade_mask_rcnn": {"objectness", "proposal_box", "mask"}
    | {f"{part}_{stage}" for part in ("classification", "box") for stage in (1, 2, 3)},
}
NAMES["vitdet"] = NAMES["cascade_mask_rcnn"]


def scenes(*counts, size=(64, 64)):
    images, targets = zip(*(draw(seed, count, size) for seed, count in enumerate(counts)), strict=True)
    return list(images), list(targets)


def values(losses):
    return {name: float(loss.detach()) for name, loss in losses.items()}


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    """A detector after its first backward pass, on three images of different sizes, one of them empty."""
    model = create(configure(request.param, "tiny"))
    images, targets = zip(draw(0, 2, (64, 64)), draw(1, 0, (50, 70)), draw(2, 3, (40, 33)), strict=True)
    losses = model(list(images), list(targets))
    sum(losses.values()).backward()
    return request.param, model, values(losses)


def test_losses_and_gradients(trained):
    kind, model, losses = trained
    assert losses.keys() == NAMES[kind]
    assert all(0 < loss < 10 for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # Levels that no box is drawn from learn nothing yet.
        assert parameter.grad.any() or name.startswith("backbone.pyramid"), name


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects_teach_the_background_only(kind):
    model = create(configure(kind, "tiny"))
    losses = model(*scenes(0, 0))
    sum(losses.values()).backward()
    for name, loss in values(losses).items():
        assert (loss > 0) == name.startswith(("objectness", "classification")), name
    # Everything is connected, as training on several processes wants it.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_instances(kind):
    generator = torch.Generator().manual_seed(1)
    model = create(configure(kind, "tiny", max_detections=20), generator).eval()
    images = [torch.rand(3, *size, generator=generator) for size in ((64, 64), (50, 70), (40, 33))]
    found = model(images)
    for image, instances in zip(images, found, strict=True):
        assert len(instances) == 20
        assert instances.masks.shape[1:] == image.shape[1:]
        assert (instances.scores.diff() <= 0).all()
        assert set(instances.labels.tolist()) == {1}
        height, width = image.shape[1:]
        assert (instances.boxes >= 0).all()
        assert (instances.boxes <= torch.tensor([width, height, width, height])).all()
    again = model(images)
    for name in ("masks", "boxes", "scores"):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(found, again, strict=True))
    middle = float(found[0].scores[9])
    fewer = model.detect(images[:1], score_threshold=middle, max_detections=5)[0]
    assert len(fewer) == 5
    assert (fewer.scores > middle).all()
    assert len(model.detect(images[:1], score_threshold=0.999)[0]) == 0


def test_images_are_looked_at_in_another_size_and_found_in_their_own():
    model = create(configure("mask_rcnn", "tiny")).eval()
    image = torch.rand(3, 80, 50, generator=torch.Generator().manual_seed(0))
    twice = nn.functional.interpolate(image[None], scale_factor=2, mode="bilinear", antialias=True)[0]
    [expected] = model([twice])
    model.config = model.config.replace(short_side=100)
    [found] = model([image])
    assert found.masks.shape == (len(expected), 80, 50)
    torch.testing.assert_close(2 * found.boxes, expected.boxes)
    torch.testing.assert_close(found.scores, expected.scores)


def test_every_draw_is_the_generator_s():
    before = torch.get_rng_state()
    images, targets = scenes(2, 3)
    models = [create(configure("mask_rcnn", "tiny"), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    losses = [values(models[0](images, targets, torch.Generator().manual_seed(seed))) for seed in (3, 3, 4)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert values(models[0](images, targets)) == values(models[0](images, targets))
    assert torch.equal(before, torch.get_rng_state())


def test_first_weights():
    model = create(configure("cascade_mask_rcnn", "tiny"))
    expected = {
        "rpn.conv": 0.01,
        "rpn.deltas": 0.01,
        "boxes.stages.1.scores": 0.01,
        "boxes.stages.2.deltas": 0.001,
        "masks.predictor": 0.001,
        "backbone.trunk.layer1.0.conv1": (2 / (64 * 9)) ** 0.5,
        "backbone.pyramid.layer_blocks.0.0": (1 / (32 * 9)) ** 0.5,
        "boxes.stages.0.fc1": (1 / (32 * 49)) ** 0.5,
    }
    modules = dict(model.named_modules())
    for name, std in expected.items():
        weight = modules[name].weight.detach()
        assert float(weight.std()) == pytest.approx(std, rel=0.3 if weight.numel() < 200 else 0.1), name
        assert modules[name].bias is None or not modules[name].bias.any()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_scores_of_pseudo_labels_weigh_their_losses():
    model = create(configure("mask_rcnn", "tiny"))
    images, targets = scenes(2, 3)
    plain = values(model(images, targets))
    ones = [{**target, "weights": torch.ones(len(target["boxes"]))} for target in targets]
    halves = [{**target, "weights": 0.5 * torch.ones(len(target["boxes"]))} for target in targets]
    assert values(model(images, ones)) == plain
    soft = values(model(images, halves))
    for name in ("box", "mask"):
        assert soft[name] == pytest.approx(plain[name] / 2)
    assert plain["classification"] / 2 < soft["classification"] < plain["classification"]
    assert all(soft[name] == plain[name] for name in ("objectness", "proposal_box"))


def test_drop_loss_is_of_the_classification_alone():
    images, targets = scenes(2, 3)
    with_it, without = (
        values(create(configure("cascade_mask_rcnn", "tiny", drop_loss=threshold))(images, targets))
        for threshold in (0.01, None)
    )
    for name, loss in with_it.items():
        assert (loss < without[name]) if name.startswith("classification") else (loss == without[name]), name


def test_several_categories():
    model = create(configure("mask_rcnn", "tiny", categories=3))
    images, targets = scenes(2, 3)
    targets = [{**target, "labels": torch.tensor([3, 1, 2][: len(target["boxes"])])} for target in targets]
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert model.masks.predictor.weight.grad.flatten(1).any(1).all()
    [found, _] = model.eval().detect(images, max_detections=1000)
    assert set(found.labels.tolist()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"boxes": torch.tensor([[5.0, 5.0, 5.0, 9.0]])}, "image 1 has an empty box"),
        ({"boxes": torch.zeros(2, 4)}, r"image 1 of \(64, 64\) does not fit together: boxes \(2, 4\)"),
        ({"masks": torch.zeros(1, 64, 63, dtype=torch.bool)}, r"masks \(1, 64, 63\)"),
        ({"masks": torch.zeros(1, 64, 64)}, "not booleans"),
        ({"labels": torch.tensor([0])}, r"not all in 1 to 1: \[0\]"),
        ({"weights": torch.ones(2)}, r"weights \(2,\)"),
    ],
)
def test_a_target_that_does_not_fit(change, complaint):
    model = create(configure("mask_rcnn", "tiny"))
    images, targets = scenes(1, 1)
    with pytest.raises(ValueError, match=complaint):
        model(images, [targets[0], {**targets[1], **change}])


def test_bfloat16():
    """Layers in half the precision; what is computed of boxes, losses and scores is not."""
    model = create(configure("cascade_mask_rcnn", "tiny"))
    images, targets = scenes(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, targets)
    exact = values(model(images, targets))
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # The proposals, and with them the regions that are drawn, are not the same ones.
        if name in ("objectness", "proposal_box", "mask"):
            assert float(loss.detach()) == pytest.approx(exact[name], rel=0.05)
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [found, _] = model.eval()(images)
    assert found.boxes.dtype == found.scores.dtype == torch.float32


@pytest.mark.parametrize(
    "images",
    [[], [torch.zeros(3, 32, 32, dtype=torch.uint8)], [torch.zeros(1, 32, 32)], [torch.zeros(3, 0, 32)]],
    ids=["none", "bytes", "grey", "empty"],
)
def test_images_that_are_none(images):
    with pytest.raises(ValueError, match=r"no images|Images are floats"):
        batch(images)


def test_training_without_targets():
    model = create(configure("mask_rcnn", "tiny"))
    with pytest.raises(ValueError, match="a target for each of 2 images"):
        model(scenes(1, 1)[0])


class TestNorm:
    IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def pyramid(self, norm, channels=16):
        torch.manual_seed(0)
        return ResNetPyramid(ResNetConfig(arch="resnet18", norm=norm, channels=channels))

    def test_over_all_processes_is_over_the_batch_on_a_cpu(self, tmp_path):
        sync, own = self.pyramid("sync"), self.pyramid("batch")
        own.load_state_dict(sync.state_dict())
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            maps = sync(self.IMAGES)
        finally:
            torch.distributed.destroy_process_group()
        assert all(torch.equal(a, b) for a, b in zip(maps, own(self.IMAGES), strict=True))
        assert torch.equal(sync.trunk.bn1.running_mean, own.trunk.bn1.running_mean)
        assert sync.trunk.bn1.running_mean.any()

    def test_frozen(self):
        pyramid = self.pyramid("frozen").train()
        before = {name: value.clone() for name, value in pyramid.state_dict().items()}
        sum(level.sum() for level in pyramid(self.IMAGES)).backward()
        assert all(torch.equal(value, before[name]) for name, value in pyramid.state_dict().items())
        assert not any(name.endswith("bn1.weight") and p.requires_grad for name, p in pyramid.named_parameters())
        # The same in evaluation, and nothing but biases in the pyramid.
        assert all(torch.equal(a, b) for a, b in zip(pyramid(self.IMAGES), pyramid.eval()(self.IMAGES), strict=True))
        assert {name.rpartition(".")[2] for name, _ in pyramid.pyramid.named_parameters()} == {"weight", "bias"}
        assert len(list(pyramid.pyramid.parameters())) == 16

    def test_group_needs_no_batch(self):
        pyramid = self.pyramid("group", channels=24)
        together = pyramid(self.IMAGES)
        alone = pyramid(self.IMAGES[:1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[:1], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch_size", [4, 8, 16, 32])
def test_the_pyramid_of_a_transformer(patch_size):
    config = configure("vitdet", "tiny", backbone={"patch_size": patch_size, "width": 48, "depth": 1})
    model = create(config)
    maps = model.backbone(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    assert [tuple(level.shape[1:]) for level in maps] == [
        (32, 16, 24), (32, 8, 12), (32, 4, 6), (32, 2, 3), (32, 1, 2)
    ]  # fmt: skip


class TestConfiguration:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_published_values(self, kind):
        config = configure(kind)
        assert (config.rpn.nms, config.rpn.train, config.rpn.test) == (0.65, 4000, 1000)
        assert (config.drop_loss, config.score_threshold, config.nms, config.max_detections) == (0.01, 0.0, 0.5, 100)
        assert [stage.iou for stage in config.stages] == ([0.5] if kind == "mask_rcnn" else [0.5, 0.6, 0.7])
        changed = differences(config.model_dump(), configure(kind, "self_train").model_dump())
        assert changed == ["drop_loss: 0.01 -> null", "rpn.nms: 0.65 -> 0.7", "rpn.train: 4000 -> 1000"]

    def test_a_configuration_says_which_detector_it_is_of(self):
        for kind, detector in DETECTORS.items():
            config = configure(kind, "tiny")
            assert type(create(configure(**config.model_dump(mode="json")))) is detector
            assert configure(**config.model_dump(mode="json")) == config

    def test_mistakes(self):
        with pytest.raises(UsageError, match="Did you mean 'mask_rcnn'"):
            configure("maskrcnn")
        with pytest.raises(UsageError, match="no preset 'small'; it has: default"):
            configure("vitdet", "small")
        with pytest.raises(ConfigError, match="Did you mean 'rpn\\.nms'"):
            configure("mask_rcnn", rpn={"nsm": 0.5})
        with pytest.raises(ConfigError, match="5 heads"):
            configure("vitdet", backbone={"heads": 5})
        with pytest.raises(ConfigError, match="stages"):
            configure("cascade_mask_rcnn", stages=[{"iou": 0.5}])


def test_mask_rcnn_learns_two_pictures_by_heart():
    images, targets = scenes(2, 3)
    # DropLoss is there to let more be found than is labelled.
    model = create(configure("mask_rcnn", "tiny", drop_loss=None))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 20)
        optimiser.zero_grad()
        sum(model(images, targets, generator).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    for instances, target in zip(model.eval().detect(images, score_threshold=0.5), targets, strict=True):
        assert len(instances) == len(target["masks"])
        assert (mask_iou(target["masks"], instances.masks).amax(1) > 0.7).all()
