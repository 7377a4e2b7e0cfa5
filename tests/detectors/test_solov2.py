"""SOLOv2: what its cells stand for, how they become instances, and whether it learns."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from figureground.config import differences
from figureground.detectors import configure, create, load, load_backbone, save
from figureground.detectors.exemplar_contrast import ExemplarContrastConfig, exemplar_contrast
from figureground.detectors.interface import batch
from figureground.detectors.solo_head import with_coordinates
from figureground.detectors.solo_targets import assign, fill_boxes, shrink
from figureground.detectors.solov2 import WeakLossConfig, alike_in_colour, convolve, enlarge, keep_peaks
from figureground.detectors.targets import Truth, check_targets
from figureground.errors import ConfigError
from figureground.ops.masks import mask_iou, masks_to_boxes
from tests.detectors.scenes import draw
from tests.reference import solo as reference
from tests.reference.discovery import matrix_nms

WEAK = {"category", "max_projection", "average_projection", "pairwise"}


def scenes(*counts, size=(64, 64)):
    images, targets = zip(*(draw(seed, count, size) for seed, count in enumerate(counts)), strict=True)
    return list(images), list(targets)


def values(losses):
    return {name: float(loss.detach()) for name, loss in losses.items()}


def truth_of(masks):
    boxes = masks_to_boxes(masks)
    return Truth(boxes, torch.zeros(len(masks), dtype=torch.int64), masks, torch.ones(len(masks)))


def small(**changes):
    """A SOLOv2 of few weights beside its trunk, after its warm-up."""
    light = {"layers": 1, "width": 8, "kernel": 8, "feature_width": 8, "weak": {"warmup": 0}}
    return create(configure("solov2", "tiny", **{**light, **changes}))


class TestCells:
    GRIDS, RANGES = (9, 6, 3), ((1, 25), (18, 40), (30, 99))

    @pytest.mark.parametrize("centre", [0.2, 0.9])
    @pytest.mark.parametrize("seed", range(6))
    def test_what_they_stand_for(self, seed, centre):
        _, target = draw(seed, 6, (60, 83))
        # Two around them all, one far from its centre of mass: objects that claim each other's cells.
        around = target["masks"].any(0)
        far = around.clone()
        far[:30] = False
        truth = truth_of(torch.cat([around[None], target["masks"], far[None]]))
        index, positive = assign(truth, (64, 96), self.GRIDS, self.RANGES, centre)
        expected = reference.owners(
            truth.masks.tolist(), truth.boxes.tolist(), (64, 96), self.GRIDS, self.RANGES, centre
        )
        sizes = [side**2 for side in self.GRIDS]
        for own, there, cells, side in zip(
            index.split(sizes), positive.split(sizes), expected, self.GRIDS, strict=True
        ):
            found = {(int(cell) // side, int(cell) % side): int(own[cell]) for cell in torch.nonzero(there)}
            assert found == cells
        assert positive.any()
        assert not positive.all()

    def test_objects_too_small_to_be_seen_and_none_at_all(self):
        masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        masks[0, 20, 20] = True
        for truth in (truth_of(masks), truth_of(masks[:0])):
            index, positive = assign(truth, (64, 64), self.GRIDS, self.RANGES, 0.2)
            assert len(index) == len(positive) == 81 + 36 + 9
            assert not positive.any()

    def test_an_object_has_cells_on_each_level_for_its_size(self):
        masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        masks[0, 21:42, 21:42] = True  # 21 px: of the first two levels
        _, positive = assign(truth_of(masks), (64, 64), (8, 4, 2), self.RANGES, 0.2)
        # Its centre lies in the middle of a cell of eight, and two px around it are no other's.
        assert [int(own.sum()) for own in positive.split([64, 16, 4])] == [4, 4, 0]

    def test_masks_and_boxes_at_the_stride_of_what_is_predicted(self):
        mask = torch.zeros(1, 10, 9, dtype=torch.bool)
        mask[0, 2:9, 3:9] = True
        assert shrink(mask).int().tolist() == [[[0, 1, 1], [0, 1, 1], [0, 1, 1]]]
        assert fill_boxes(masks_to_boxes(mask), (3, 4)).int().tolist() == [[[1, 1, 1, 0]] * 3]
        assert shrink(mask[:0]).shape == (0, 3, 3)


class TestInference:
    GENERATOR = torch.Generator().manual_seed(0)

    def test_peaks(self):
        grids = (5, 3)
        scores = torch.rand(2, 25 + 9, 2, generator=self.GENERATOR)
        scores[0, 6, 0] = scores[0, 7, 0] = 0.99  # of equal ones both stay
        found = keep_peaks(scores, grids)
        assert found[0, 6, 0] == found[0, 7, 0] == scores[0, 7, 0]
        for image in range(2):
            for category in range(2):
                levels = (each[image, :, category].split([25, 9]) for each in (scores, found))
                for side, own, kept in zip(grids, *levels, strict=True):
                    expected = reference.peaks(own.reshape(side, side).tolist())
                    torch.testing.assert_close(kept.reshape(side, side), torch.tensor(expected))

    def test_dynamic_convolution(self):
        kernels = torch.randn(3, 4, generator=self.GENERATOR)
        features = torch.randn(4, 5, 6, generator=self.GENERATOR)
        expected = [reference.convolve(kernel, features.tolist()) for kernel in kernels.tolist()]
        torch.testing.assert_close(convolve(kernels, features), torch.tensor(expected))

    def test_coordinates(self):
        known = with_coordinates(torch.zeros(2, 3, 2, 3))
        assert known.shape == (2, 5, 2, 3)
        assert known[1, 3].tolist() == [[-1, 0, 1]] * 2
        assert known[1, 4].tolist() == [[-1] * 3, [1] * 3]

    def test_from_cells_to_instances(self):
        """Thresholds, rescoring, the order of Matrix-NMS and the least areas, against one cell after the other."""
        model = small(grids=(3, 2, 1, 1, 1), min_areas=(3, 9, 3, 3, 3), kernel=8)
        features = 6 * torch.rand(8, 5, 6, generator=self.GENERATOR) - 3
        kernels = torch.randn(16, 8, generator=self.GENERATOR)
        kernels[3] = kernels[2] + 0.05  # nearly the same mask
        scores = torch.rand(16, 1, generator=self.GENERATOR)
        scores[5] = 0.09
        soft, sure, labels = model._find(scores, kernels, features, 0.2, 4)
        candidates = []
        for cell, (score, kernel) in enumerate(zip(scores[:, 0].tolist(), kernels.tolist(), strict=True)):
            mask = [[reference.sigmoid(v) for v in row] for row in reference.convolve(kernel, features.tolist())]
            inside = [v for row in mask for v in row if v > 0.5]
            least = 3 if cell < 9 else 9 if cell < 13 else 3
            if score > 0.1 and len(inside) > least:
                candidates.append((score * sum(inside) / len(inside), mask))
        candidates.sort(key=lambda each: -each[0])
        masks = np.array([mask for _, mask in candidates]) > 0.5
        lowered = matrix_nms(masks, [score for score, _ in candidates], 2.0)
        ranked = sorted(zip(lowered, (mask for _, mask in candidates), strict=True), key=lambda each: -each[0])
        expected = [each for each in ranked if each[0] > 0.2][:4]
        assert 1 < len(expected) <= 4
        assert len(candidates) < 15
        assert sure.tolist() == pytest.approx([score for score, _ in expected], rel=1e-4)
        torch.testing.assert_close(soft, torch.tensor([mask for _, mask in expected]))
        assert labels.tolist() == [0] * len(expected)

    def test_enlarging(self):
        soft = torch.zeros(1, 8, 8)
        soft[0, 2:5, 1:4] = 1
        [mask] = enlarge(soft, (30, 27), (30, 27), 0.5)
        assert masks_to_boxes(mask[None]).tolist() == [[4, 8, 16, 20]]
        [mask] = enlarge(soft, (30, 27), (60, 54), 0.5)
        assert masks_to_boxes(mask[None]).tolist() == [[8, 16, 32, 40]]
        assert enlarge(soft[:0], (30, 27), (60, 54), 0.5).shape == (0, 60, 54)

    def test_pairs_of_a_picture(self):
        image = torch.zeros(3, 30, 26)
        image[:, :, 12:] = 1
        alike = alike_in_colour(image, (8, 8), WeakLossConfig(dilation=1, bottom=6))
        right = alike[4]
        # Padding, the last six px and the edge of the picture are no pairs, nor is what differs in colour.
        assert right.int().tolist() == [[1, 1, 0, 1, 1, 1, 0, 0]] * 6 + [[0] * 8] * 2

    def test_instances(self):
        generator = torch.Generator().manual_seed(1)
        model = small(candidate_threshold=0.0, score_threshold=0.0, max_detections=20, min_areas=(1, 1, 1, 1, 1)).eval()
        images = [torch.rand(3, *size, generator=generator) for size in ((64, 64), (50, 70), (40, 33))]
        found = model(images)
        for image, instances in zip(images, found, strict=True):
            assert 1 < len(instances) <= 20
            assert instances.masks.shape[1:] == image.shape[1:]
            assert torch.equal(instances.boxes, masks_to_boxes(instances.masks))
            assert (instances.scores.diff() <= 0).all()
            assert set(instances.labels.tolist()) == {1}
        again = model(images)
        assert all(torch.equal(a.masks, b.masks) for a, b in zip(found, again, strict=True))
        middle = float(found[0].scores[1])
        [fewer] = model.detect(images[:1], score_threshold=middle, max_detections=1)
        # By itself as in a batch with larger ones.
        assert torch.equal(fewer.masks, found[0].masks[:1])
        assert (fewer.scores > middle).all()
        [none] = model.detect(images[:1], score_threshold=0.999)
        assert none.masks.shape == (0, 64, 64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            [half, *_] = model(images)
        assert half.scores.dtype == half.boxes.dtype == torch.float32


class TestTraining:
    def test_losses_and_gradients(self):
        model = small()
        images, targets = zip(draw(0, 2, (64, 64)), draw(1, 0, (50, 70)), draw(2, 3, (40, 33)), strict=True)
        losses = model(list(images), list(targets))
        sum(losses.values()).backward()
        assert losses.keys() == WEAK
        assert all(0 < loss < 10 for loss in values(losses).values())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    @pytest.mark.parametrize("masks", ["weak", "full"])
    def test_images_without_objects_teach_the_background_only(self, masks):
        model = small(masks=masks)
        losses = model(*scenes(0, 0))
        sum(losses.values()).backward()
        assert losses.keys() == (WEAK if masks == "weak" else {"category", "mask"})
        assert all((loss > 0) == (name == "category") for name, loss in values(losses).items())
        # Everything is connected, as training on several processes wants it.
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    def test_the_losses_are_those_of_their_definitions(self):
        """Of one image, from the model's own cells and features."""
        model = small(weak={"warmup": 2, "bottom": 3})
        images, targets = scenes(3)
        cells_of, features_of = [], []
        model.cells.register_forward_hook(lambda *call: cells_of.append(call[-1]))
        model.features.register_forward_hook(lambda *call: features_of.append(call[-1]))
        targets[0]["weights"] = torch.linspace(0.3, 1, len(targets[0]["boxes"]))
        losses = values(model(images, targets))
        [cells], [[features]], [target] = cells_of, features_of, targets
        config, weights = model.config, target["weights"].tolist()
        truth = truth_of(target["masks"])
        index, positive = assign(truth, (64, 64), config.grids, config.ranges, config.centre)
        owners = index[positive].tolist()
        focal = sum(
            (weights[int(index[cell])] if positive[cell] else 1) * reference.focal(logit, bool(positive[cell]))
            for cell, logit in enumerate(cells.categories[0, :, 0].tolist())
        )
        assert losses["category"] == pytest.approx(focal / (len(owners) + 1), rel=1e-4)
        logits = convolve(cells.kernels[0][positive], features).tolist()
        small_masks = shrink(target["masks"]).float().tolist()
        pairs = list(zip(logits, owners, strict=True))
        for name, average, factor in (("max_projection", False, 1.0), ("average_projection", True, 0.1)):
            each = [weights[o] * reference.projections(own, small_masks[o], average) for own, o in pairs]
            assert losses[name] == pytest.approx(factor * sum(each) / len(each), rel=1e-4)
        alike = alike_in_colour(images[0], (16, 16), config.weak).float().tolist()
        inside = fill_boxes(target["boxes"], (16, 16)).tolist()
        sums = [(o, *reference.pairwise(own, alike, inside[o], 0.3, 2)) for own, o in pairs]
        mean = sum(weights[o] * total for o, total, _ in sums) / sum(count for *_, count in sums)
        # The first of two steps of warm-up.
        assert losses["pairwise"] == pytest.approx(mean / 2, rel=1e-4)

    def test_the_warm_up_of_colour(self):
        model = small(weak={"warmup": 4})
        images, targets = scenes(2)
        found = [values(model(images, targets)) for _ in range(6)]
        assert int(model.steps) == 6
        assert [each["pairwise"] / found[-1]["pairwise"] for each in found] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
        assert all(each["max_projection"] == found[0]["max_projection"] for each in found)

    def test_embeddings(self):
        images, targets = scenes(2, 1)
        model = small(embedding_weight=0.5, embedding=7)
        with pytest.raises(ValueError, match="image 0 needs embeddings of 7 numbers"):
            model(images, targets)
        generator = torch.Generator().manual_seed(0)
        for target in targets:
            target["embeddings"] = torch.randn(len(target["boxes"]), 7, generator=generator)
        losses = model(images, targets)
        assert losses.keys() == {*WEAK, "embedding"}
        assert 0 < float(losses["embedding"].detach()) < 1
        losses["embedding"].backward()
        assert model.cells.embedding.weight.grad.any()
        with pytest.raises(ValueError, match="1 objects and 3 embeddings"):
            model(images, [targets[0], {**targets[1], "embeddings": torch.zeros(3, 7)}])
        assert small().cells.embedding is None

    def test_objects_of_which_nothing_is_known(self):
        """Embeddings of zeros are not learned, and cost nothing."""
        images, targets = scenes(2)
        model = small(embedding_weight=1, embedding=5)
        targets[0]["embeddings"] = torch.zeros(len(targets[0]["boxes"]), 5)
        losses = model(images, targets)
        assert float(losses["embedding"].detach()) == 0
        targets[0]["embeddings"][0] = 1
        known = float(model(images, targets)["embedding"].detach())
        targets[0]["boxes"], targets[0]["labels"] = targets[0]["boxes"][:1], targets[0]["labels"][:1]
        targets[0]["masks"], targets[0]["embeddings"] = targets[0]["masks"][:1], targets[0]["embeddings"][:1]
        assert known == pytest.approx(float(model(images, targets)["embedding"].detach()), rel=1e-5)

    def test_exemplars(self):
        """The contrast of what the cells of objects say, with its weight; the pool is no part of the weights."""
        images, targets = scenes(3, 2)
        model = small(embedding_weight=0.5, embedding=7)
        generator = torch.Generator().manual_seed(0)
        for target in targets:
            target["embeddings"] = torch.randn(len(target["boxes"]), 7, generator=generator)
        pool = torch.nn.functional.normalize(torch.randn(6, 7, generator=generator))
        config = ExemplarContrastConfig(alpha=0.2, beta=0.1, weight=2.6)
        before = model(images, targets)
        model.contrast_with(pool, config)
        losses = model(images, targets)
        assert losses.keys() == {*before, "exemplar"}
        said = model.cells(model.backbone(batch(images))).embeddings
        positive = [
            assign(own, (64, 64), model.config.grids, model.config.ranges, model.config.centre)[1]
            for own in check_targets(targets, [(64, 64)] * 2, 1)
        ]
        expected = 2.6 * exemplar_contrast(said[torch.stack(positive)], pool, config)
        assert float(expected.detach()) > 0
        torch.testing.assert_close(losses["exemplar"], expected)
        losses["exemplar"].backward()
        assert model.cells.embedding.weight.grad.any()
        assert "exemplars" not in model.state_dict()
        for other in (small(), small(embedding_weight=1, embedding=8)):
            with pytest.raises(ValueError, match="Exemplars of 7 numbers"):
                other.contrast_with(pool, config)
        with pytest.raises(ValueError, match="how many numbers"):
            small(embedding_weight=1)

    def test_several_categories(self):
        model = small(categories=3)
        images, targets = scenes(3)
        targets[0]["labels"] = torch.tensor([3, 1, 3][: len(targets[0]["boxes"])])
        model(images, targets)["category"].backward()
        pulled = model.cells.category.bias.grad
        # The one that no object is of is only pushed down.
        assert pulled[1] > pulled[0]
        assert pulled[1] > pulled[2]
        [found] = model.eval().detect(images, score_threshold=0.0, max_detections=1000)
        assert found.labels.numel() == 0 or set(found.labels.tolist()) <= {1, 2, 3}

    def test_first_weights(self):
        before = torch.get_rng_state()
        models = [create(configure("solov2", "tiny"), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        assert torch.equal(before, torch.get_rng_state())
        kernels = [model.cells.kernel.weight for model in models]
        assert torch.equal(kernels[0], kernels[1])
        assert not torch.equal(kernels[0], kernels[2])
        assert float(kernels[0].detach().std()) == pytest.approx(0.01, rel=0.05)
        assert models[0].cells.category.bias.tolist() == pytest.approx([math.log(0.01 / 0.99)])
        assert int(models[0].steps) == 0

    def test_bfloat16(self):
        model = small()
        images, targets = scenes(2, 3)
        exact = values(model(images, targets))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(images, targets)
        for name, loss in losses.items():
            assert loss.dtype == torch.float32
            assert float(loss.detach()) == pytest.approx(exact[name], rel=0.1), name
        sum(losses.values()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    @pytest.mark.parametrize("masks", ["weak", "full"])
    def test_two_pictures_by_heart(self, masks):
        images, targets = scenes(2, 3)
        model = create(configure("solov2", "tiny", masks=masks))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(28):
            optimiser.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 20)
            optimiser.zero_grad()
            sum(model(images, targets).values()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        for instances, target in zip(model.eval().detect(images, score_threshold=0.5), targets, strict=True):
            assert len(instances) == len(target["masks"])
            assert (mask_iou(target["masks"], instances.masks).amax(1) > 0.7).all()


class TestFiles:
    def test_a_detector_comes_back(self, tmp_path):
        model = small()
        model(*scenes(1))
        save(tmp_path / "a.safetensors", model)
        again = load(tmp_path / "a.safetensors")
        assert again.config == model.config
        assert int(again.steps) == 1
        assert not again.training
        own, other = model.state_dict(), again.state_dict()
        assert own.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in own.items())
        assert load(tmp_path / "a.safetensors", max_detections=7).config.max_detections == 7

    def test_another_s_backbone(self, tmp_path):
        model, other = small(), create(configure("mask_rcnn", "tiny"), torch.Generator().manual_seed(5))
        save(tmp_path / "other.safetensors", other)
        load_backbone(model, tmp_path / "other.safetensors")
        assert torch.equal(model.backbone.trunk.conv1.weight, other.backbone.trunk.conv1.weight)


class TestConfiguration:
    def test_the_published_values(self):
        config = configure("solov2")
        assert config.backbone.arch == "resnet101"
        assert config.grids == (40, 36, 24, 16, 12)
        assert config.ranges == ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
        assert (config.layers, config.width, config.kernel, config.feature_width) == (4, 512, 256, 128)
        assert (config.weak.average, config.weak.affinity, config.weak.warmup) == (0.1, 0.3, 1000)
        assert differences(config.model_dump(), configure("solov2", "self_train").model_dump()) == []

    def test_mistakes(self):
        with pytest.raises(ConfigError, match="Did you mean 'weak\\.average'"):
            configure("solov2", weak={"averge": 1})
        with pytest.raises(ConfigError, match="cells on a side"):
            configure("solov2", grids=(4, 4, 4, 4, 0))
