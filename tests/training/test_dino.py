"""DINO and iBOT are those of the papers; the teacher, the centres and the collapses."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from figureground.errors import ConfigError, RunError
from figureground.training.collapse import CollapseConfig, check_collapse, measure_collapse
from figureground.training.dino import (
    Dino,
    DinoConfig,
    Head,
    HeadConfig,
    VitConfig,
    dino_loss,
    parameter_groups,
    schedules,
    seeded,
)
from figureground.training.ibot import IbotConfig, block_masks, hidden_patches, patch_loss, patch_weights
from figureground.training.order import generator_for
from tests.reference import dino as reference

VIT = VitConfig(patch_size=4, image_size=16, width=24, depth=2, heads=2)
CONFIG = DinoConfig(vit=VIT, head=HeadConfig(outputs=20, hidden=16, bottleneck=8), warmup_epochs=1, precision="fp32")


def built(steps: int = 40, **changes: object) -> Dino:
    config = CONFIG.replace(**changes)
    return Dino(config, schedules(config, steps, 5.0, 1e-3), generator_for(0, "weights"))


def draws(*key: int | str) -> torch.Generator:
    return generator_for("test", *key)


def some_views(images: int = 3, small: int = 2) -> list[Tensor]:
    generator = draws("views")
    return [torch.rand(images, 3, side, side, generator=generator) for side in (16, 16, *[8] * small)]


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


class TestLoss:
    @pytest.mark.parametrize("views", [2, 3, 6])
    def test_is_the_plain_loop(self, views: int) -> None:
        student, teacher = torch.randn(views, 4, 7, generator=draws(1)), torch.randn(2, 4, 7, generator=draws(2))
        centre = torch.randn(7, generator=draws(3))
        expected = reference.dino(array(student), array(teacher), array(centre), 0.04, 0.1)
        assert float(dino_loss(student, teacher, centre, 0.1, 0.04)) == pytest.approx(expected, rel=1e-5)

    def test_many_products_are_summed_exactly(self) -> None:
        student, teacher = (torch.randn(2, 64, 16384, generator=draws(key)) for key in (1, 2))
        centre = torch.zeros(16384)
        exact = dino_loss(student.double(), teacher.double(), centre.double(), 0.1, 0.04)
        assert float(dino_loss(student, teacher, centre, 0.1, 0.04)) == pytest.approx(float(exact), rel=1e-6)

    def test_patches_are_the_plain_loop(self) -> None:
        student, teacher = torch.randn(2, 4, 6, 7, generator=draws(1)).unbind()
        masks = torch.rand(4, 2, 3, generator=draws(2)) < 0.4
        masks[1] = False
        assert masks[0].any()
        centre = torch.randn(7, generator=draws(3))
        places = hidden_patches(masks)
        found = patch_loss(
            student.flatten(0, 1)[places], teacher.flatten(0, 1)[places], patch_weights(masks), centre, 0.1, 0.07
        )
        expected = reference.ibot(*(array(x) for x in (student, teacher, masks.flatten(1), centre)), 0.07, 0.1)
        assert float(found) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("fixed", [False, True])
    @pytest.mark.parametrize("layers", [1, 3])
    def test_head(self, layers: int, fixed: bool) -> None:
        with seeded(draws(0)):
            head = Head(6, HeadConfig(outputs=5, hidden=9, bottleneck=4, layers=layers, fixed_norm=fixed))
        if head.lengths is not None:
            head.lengths.data.uniform_(0.5, 2, generator=draws(1))
        features = torch.randn(3, 6, generator=draws(2))
        weights = {name: array(value) for name, value in head.state_dict().items()}
        expected = reference.head(array(features), weights)
        np.testing.assert_allclose(array(head(features)), expected, rtol=1e-4, atol=1e-6)
        assert ("lengths" in weights) != fixed


class TestStep:
    def test_the_teacher_sees_the_large_views_and_the_student_all(self) -> None:
        """The loss of a step is the plain loop's on the outputs of each view by itself."""
        model, views = built().eval(), some_views()
        model.centre.normal_(generator=draws("centre"))
        with torch.no_grad():
            student = torch.stack([model.student.head(model.student(view)[0]) for view in views])
            teacher = torch.stack([model.teacher.module.head(model.teacher.module(view)[0]) for view in views[:2]])
            found = model.losses(views, 2, draws())
        temperature = 0.04 + 0.03 * 2 / (30 * 5)
        expected = reference.dino(array(student), array(teacher), array(model.centre), temperature, 0.1)
        assert found.keys() == {"views"}
        assert float(found["views"]) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("head", ["shared", "own"])
    def test_hidden_patches(self, head: str) -> None:
        model, views = built(patches=IbotConfig(weight=0.5, head=head)).eval(), some_views()
        for centre in (model.centre, model.patch_centre):
            centre.normal_(generator=draws("centre"))
        torch.nn.init.normal_(model.student.mask_token, generator=draws("token"))
        masks = block_masks(6, (4, 4), model.config.patches, draws())
        student, teacher = model.student, model.teacher.module
        assert (student.patch_head is None) == (head == "shared")
        with torch.no_grad():
            found = model.losses(views, 0, draws())
            hidden = student(torch.cat(views[:2]), masks)
            seen = teacher(torch.cat(views[:2]))
            small = [student(view)[0] for view in views[2:]]
            patches = [
                (net.patch_head or net.head)(tokens.flatten(0, 1)).unflatten(0, (6, 16))
                for net, tokens in ((student, hidden[1]), (teacher, seen[1]))
            ]
            outputs = [student.head(part) for part in (*hidden[0].chunk(2), *small)]
            targets = torch.stack([teacher.head(part) for part in seen[0].chunk(2)])
        assert float(found["views"]) == pytest.approx(
            reference.dino(array(torch.stack(outputs)), array(targets), array(model.centre), 0.04, 0.1), rel=1e-5
        )
        expected = reference.ibot(
            *(array(part) for part in (*patches, masks.flatten(1), model.patch_centre)), 0.04, 0.1
        )
        assert float(found["patches"]) == pytest.approx(0.5 * expected, rel=1e-5)

    def test_the_student_does_not_see_what_is_hidden(self) -> None:
        model, images = built(patches=IbotConfig(weight=1)).eval(), some_views()[0]
        masks = torch.zeros(3, 4, 4, dtype=torch.bool)
        masks[:, 1:3, 2] = True
        changed = images.clone()
        changed[:, :, 4:12, 8:12] = 0.5
        with torch.no_grad():
            torch.testing.assert_close(model.student(images, masks)[1], model.student(changed, masks)[1])
            assert not torch.allclose(model.student(images)[1], model.student(changed)[1])

    def test_teacher_and_centre_follow(self) -> None:
        model, views = built(), some_views()
        before = {name: value.clone() for name, value in model.teacher.module.named_parameters()}
        model.losses(views, 0, draws())
        assert not model.centre.any()
        with torch.no_grad():
            for parameter in model.student.parameters():
                parameter += 1
        with torch.no_grad():
            said = model.teacher.module.head(model.teacher.module(torch.cat(views[:2]))[0])
        model.after_update(20)
        torch.testing.assert_close(model.centre, 0.1 * said.mean(0))
        momentum = 1 - 0.004 / 2
        for name, value in model.teacher.module.named_parameters():
            torch.testing.assert_close(value, before[name] + (1 - momentum) * 1)

    def test_only_the_student_learns_and_its_last_layer_from_the_second_epoch_on(self) -> None:
        model = built()
        for step, frozen in ((0, True), (4, True), (5, False), (0, True)):
            model.zero_grad(set_to_none=True)
            sum(model.losses(some_views(), step, draws()).values()).backward()
            assert all(parameter.grad is None for parameter in model.teacher.parameters())
            without = {name for name, parameter in model.student.named_parameters() if parameter.grad is None}
            assert without == ({"head.directions", "head.lengths"} if frozen else set())

    def test_random_numbers_are_its_own(self) -> None:
        """Blocks are dropped by the generator given, in the student alone; torch's own is left as it was."""
        before = torch.get_rng_state()
        model = built(vit=VIT.replace(drop_path=0.5))
        found = [float(model.losses(some_views(), 0, draws(key))["views"].detach()) for key in (0, 0, 1)]
        assert found[0] == found[1] != found[2]
        assert torch.equal(torch.get_rng_state(), before)
        weights = [torch.cat([p.flatten() for p in each.parameters()]) for each in (model, built(vit=model.config.vit))]
        assert torch.equal(*weights)
        assert not model.teacher.training
        assert model.student.training

    def test_half_precision_is_near(self) -> None:
        exact, half = (
            float(built(precision=precision).losses(some_views(), 0, draws())["views"].detach())
            for precision in ("fp32", "bf16")
        )
        assert half != exact
        assert half == pytest.approx(exact, rel=0.05)


class TestSchedules:
    def test_are_published(self) -> None:
        course = schedules(CONFIG.replace(warmup_epochs=10, teacher_temperature_epochs=30), 1000, 10.0, 2e-3)
        assert course.rate(0) == 0
        assert course.rate(99) == pytest.approx(1)
        assert 2e-3 * course.rate(1000) == pytest.approx(1e-6)
        assert [course.decay(step) for step in (0, 500, 1000)] == pytest.approx([0.04, 0.22, 0.4])
        assert [course.momentum(step) for step in (0, 500, 1000)] == pytest.approx([0.996, 0.998, 1])
        assert [course.temperature(step) for step in (0, 150, 300, 999)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
        assert [course.frozen(step) for step in (0, 9, 10)] == [True, True, False]

    def test_a_warm_up_of_the_whole_run_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="10 epochs, which are 50 steps, but there are 40"):
            schedules(CONFIG.replace(warmup_epochs=10), 40, 5.0, 1e-3)

    def test_what_decays(self) -> None:
        matrices, others = parameter_groups(built().student, 0.04)
        assert (matrices["weight_decay"], others["weight_decay"]) == (0.04, 0)
        assert {each.ndim for each in others["params"]} == {1}
        assert min(each.ndim for each in matrices["params"]) > 1
        count = sum(1 for _ in built().student.parameters())
        assert len(matrices["params"]) + len(others["params"]) == count


class TestMasks:
    @pytest.mark.parametrize("grid", [(14, 14), (12, 12), (4, 4), (3, 20)])
    def test_as_many_are_hidden_as_were_drawn(self, grid: tuple[int, int]) -> None:
        config = IbotConfig(weight=1, ratio=0.3, spread=0.2, share=0.5)
        hidden = block_masks(400, grid, config, draws(0)).flatten(1).sum(1)
        patches = grid[0] * grid[1]
        assert int((hidden > 0).sum()) == 200
        shares = hidden[hidden > 0] / patches
        assert shares.min() >= 0.1 - 0.5 / patches
        assert shares.max() <= 0.5 + 0.5 / patches
        assert float(shares.mean()) == pytest.approx(0.3, abs=0.03)

    def test_they_come_in_blocks_everywhere(self) -> None:
        masks = block_masks(600, (14, 14), IbotConfig(weight=1, spread=0), draws(1)).float()
        masks = masks[masks.flatten(1).any(1)]
        # Of patches strewn one by one, 30 % of the neighbours of a hidden one would be hidden.
        neighbours = (masks[:, 1:] * masks[:, :-1]).sum() / masks[:, 1:].sum()
        assert neighbours > 0.6
        assert masks.mean(0).min() > 0.01

    @pytest.mark.parametrize(("count", "share"), [(2, 0.25), (4, 0.1), (1, 0.5)])
    def test_one_view_at_least_has_hidden_patches(self, count: int, share: float) -> None:
        masks = block_masks(count, (4, 4), IbotConfig(weight=1, share=share), draws(0))
        assert int(masks.flatten(1).any(1).sum()) == 1

    def test_other_draws_are_other_masks(self) -> None:
        config = IbotConfig(weight=1)
        one, same, other = (block_masks(8, (6, 6), config, draws(key)) for key in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


@pytest.mark.parametrize(("device", "precision", "fused"), [("cpu", "bf16", False), ("cpu", "fp32", True)])
def test_attention_is_the_fastest_there(device: str, precision: str, fused: bool) -> None:
    model = built(precision=precision).use(torch.device(device))
    for network in (model.student, model.teacher.module):
        assert {block.attn.fused_attn for block in network.backbone.blocks} == {fused}


class TestCollapse:
    SURE = torch.eye(10) * 0.9 + 0.01
    UNIFORM = torch.full((10, 10), 0.1)
    ONE = torch.eye(10)[:1].expand(10, 10)
    APART, ALIKE = torch.eye(10), torch.ones(10, 10)

    def test_what_is_measured(self) -> None:
        entropy = -(0.91 * math.log(0.91) + 0.09 * math.log(0.01)) / math.log(10)
        found = measure_collapse(self.SURE, self.APART)
        assert found == pytest.approx({"entropy": entropy, "mean_entropy": 1, "spread": 0.3 * math.sqrt(10)})
        found = measure_collapse(self.UNIFORM, self.ALIKE)
        assert found == pytest.approx({"entropy": 1, "mean_entropy": 1, "spread": 0}, abs=1e-6)
        found = measure_collapse(self.ONE, self.ALIKE * 3)
        assert found == pytest.approx({"entropy": 0, "mean_entropy": 0, "spread": 0}, abs=1e-6)

    @pytest.mark.parametrize(
        ("chances", "features", "said"),
        [
            (SURE, APART, None),
            (UNIFORM, APART, "alike for every image"),
            (ONE, APART, "one output takes all"),
            (SURE, ALIKE, "same features"),
        ],
    )
    def test_each_is_named_after_a_while(self, chances: Tensor, features: Tensor, said: str | None) -> None:
        measured = measure_collapse(chances, features)
        config = CollapseConfig(after_steps=100)
        check_collapse(measured, 99, config)
        if said is None:
            check_collapse(measured, 100, config)
            return
        with pytest.raises(RunError, match=f"at step 100, .*{said}") as caught:
            check_collapse(measured, 100, config)
        assert "--set dino." in caught.value.remedy

    def test_of_a_model(self) -> None:
        model = built(collapse=CollapseConfig(after_steps=3))
        model.losses(some_views(), 0, draws())
        assert 0.1 < model.measure(0)["spread"] < 1
        with torch.no_grad():
            model.teacher.module.head.lengths.zero_()
        model.losses(some_views(), 0, draws())
        with pytest.raises(RunError, match="alike for every image"):
            model.measure(3)


def test_a_network_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="cannot be built"):
        built(vit=VIT.replace(heads=5))
