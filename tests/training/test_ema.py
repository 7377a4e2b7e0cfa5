"""The average is the plain recursion, and lives in the state of what holds it."""

import copy

import pytest
import torch
from torch import nn

from figureground.training.ema import Ema
from figureground.training.order import generator_for


def network() -> nn.Sequential:
    return nn.Sequential(nn.utils.skip_init(nn.Linear, 3, 4), nn.BatchNorm1d(4))


def redraw(module: nn.Module, seed: int) -> None:
    generator = generator_for(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for buffer in module.buffers():
        buffer.add_(seed + 1)


def test_is_the_recursion_and_buffers_are_copied() -> None:
    source = network()
    redraw(source, 0)
    ema = Ema(source)
    expected = [parameter.detach().clone().double() for parameter in source.parameters()]
    for step, momentum in enumerate((0.9, 0.996, 0.3, 0.9999)):
        redraw(source, step)
        ema.update(momentum)
        for average, value in zip(expected, source.parameters(), strict=True):
            average.mul_(momentum).add_(value.detach().double(), alpha=1 - momentum)
    for own, average in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(own, average.float(), rtol=1e-5, atol=1e-6)
        assert not own.requires_grad
    assert all(torch.equal(*pair) for pair in zip(ema.module.buffers(), source.buffers(), strict=True))


def test_the_ends_of_momentum() -> None:
    source = network()
    redraw(source, 0)
    ema = Ema(source)
    before = copy.deepcopy(list(ema.module.parameters()))
    redraw(source, 1)
    ema.update(1)
    assert all(torch.equal(*pair) for pair in zip(before, ema.module.parameters(), strict=True))
    ema.update(0)
    assert all(torch.equal(*pair) for pair in zip(source.parameters(), ema.module.parameters(), strict=True))


def test_the_state_holds_the_average_alone() -> None:
    student = network()
    redraw(student, 0)
    teacher = Ema(student)
    model = nn.ModuleDict({"student": student, "teacher": teacher})
    assert {key for key in model.state_dict() if key.startswith("teacher")} == {
        f"teacher.module.{key}" for key in student.state_dict()
    }
    assert sum(parameter.requires_grad for parameter in model.parameters()) == len(list(student.parameters()))
    # Where the whole goes, average and source go together.
    model.double()
    teacher.update(0.5)
    assert next(teacher.parameters()).dtype == torch.float64


def test_it_answers_without_gradients() -> None:
    source = network().eval()
    redraw(source, 0)
    images = torch.randn(2, 3, generator=generator_for(1), requires_grad=True)
    answer = Ema(source)(images)
    assert not answer.requires_grad
    torch.testing.assert_close(answer, source(images).detach())


def test_a_momentum_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        Ema(network()).update(1.5)
