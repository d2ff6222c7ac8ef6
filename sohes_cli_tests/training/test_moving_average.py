"""Exponential moving average: its formula for parameters and buffers in every precision, and relative distance."""

from __future__ import annotations

import copy

import pytest
import torch
from model_cases import small_model
from tolerances import assert_near
from torch import nn

from sohes_cli.training.moving_average import relative_distance, update_teacher

DECAYS = (0.0, 0.3, 0.9, 0.9995)


class Everything(nn.Module):
    """Parameters of several shapes, float buffers to average, integer and boolean buffers to copy."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear, self.norm = nn.Linear(5, 7), nn.BatchNorm1d(7)
        self.scale = nn.Parameter(torch.randn(()))
        self.register_buffer("table", torch.randn(3, 4))
        self.register_buffer("index", torch.randint(100, (4,)))
        self.register_buffer("mask", torch.rand(4) < 0.5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.norm.num_batches_tracked.fill_(seed)


def floats(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def others(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if not tensor.is_floating_point()}


def averaged(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor], decay: float) -> dict[str, torch.Tensor]:
    return {name: decay * old[name].double() + (1 - decay) * new[name].double() for name in old}


# One update


@pytest.mark.parametrize("decay", DECAYS)
def test_floats_are_averaged_and_the_rest_is_copied(decay: float) -> None:
    teacher, student = Everything(1), Everything(2)
    old, new, counted = floats(teacher), floats(student), others(student)
    update_teacher(teacher, student, decay)
    assert_near(floats(teacher), averaged(old, new, decay), torch.float32)
    assert all(torch.equal(found, counted[name]) for name, found in others(teacher).items())
    assert len(counted) == 3
    assert all(torch.equal(found, new[name]) for name, found in floats(student).items())  # the student stays


@pytest.mark.parametrize("decay", DECAYS)
def test_a_module_in_float64_is_averaged_in_float64(decay: float) -> None:
    teacher, student = Everything(1).double(), Everything(2).double()
    expected = averaged(floats(teacher), floats(student), decay)
    update_teacher(teacher, student, decay)
    torch.testing.assert_close(floats(teacher), expected, rtol=1e-13, atol=1e-15)  # three roundings of 2^-53


def test_every_tensor_of_the_network_is_averaged() -> None:
    teacher, student = small_model(1), small_model(2)
    expected = averaged(floats(teacher), floats(student), 0.75)
    update_teacher(teacher, student, 0.75)
    assert_near(floats(teacher), expected, torch.float32)


def test_without_decay_the_teacher_is_the_student() -> None:
    teacher, student = Everything(1), Everything(2)
    update_teacher(teacher, student, 0.0)
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_they_never_share_memory(decay: float) -> None:
    teacher, student = Everything(1), Everything(2)
    update_teacher(teacher, student, decay)
    before = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.copy_(torch.zeros_like(tensor))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_no_gradient_flows_through_it() -> None:
    teacher, student = Everything(1).requires_grad_(requires_grad=False), Everything(2)
    update_teacher(teacher, student, 0.5)
    student.linear(torch.ones(1, 5)).sum().backward()
    assert student.linear.weight.grad is not None
    assert all(p.grad is None and p.grad_fn is None and not p.requires_grad for p in teacher.parameters())


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        update_teacher(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), 0.5)


# Many updates


@pytest.mark.parametrize(("decay", "updates"), [(0.9, 30), (0.9995, 200)])
def test_a_student_that_stays_is_approached_geometrically(decay: float, updates: int) -> None:
    teacher, student = Everything(1), Everything(2)
    old, new = floats(teacher), floats(student)
    for _ in range(updates):
        update_teacher(teacher, student, decay)
    assert_near(floats(teacher), averaged(old, new, decay**updates), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_student_of_16_bits_is_followed_in_32(dtype: torch.dtype) -> None:
    """A hundredth of one step of the student's precision would be rounded away in 16 bits."""
    away = torch.finfo(dtype).eps
    teacher, student = nn.Linear(8, 8), nn.Linear(8, 8).to(dtype)
    with torch.no_grad():
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.fill_(1)
            new.fill_(1 + away)
    for updates in range(1, 101):
        update_teacher(teacher, student, 0.99)
        if updates in (1, 100):
            moved = (teacher.weight.detach() - 1) / away
            expected = torch.full_like(moved, 1 - 0.99**updates)
            torch.testing.assert_close(moved, expected, rtol=0.01, atol=0)  # 2^-24 of 0.01 * 2^-10 is 0.6 %
    assert teacher.weight.dtype == teacher.bias.dtype == torch.float32


# Distance


def linear(weight: list[float], bias: float) -> nn.Linear:
    module = nn.Linear(len(weight), 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([weight]))
        module.bias.fill_(bias)
    return module


def test_the_distance_is_relative_to_the_student() -> None:
    one, other = linear([3.0, 1.0], 2.0), linear([0.0, 1.0], -2.0)
    assert float(relative_distance(one, other)) == pytest.approx(5 / 5**0.5)  # |(3, 0, 4)| / |(0, 1, 2)|
    assert float(relative_distance(other, one)) == pytest.approx(5 / 14**0.5)
    assert float(relative_distance(one, copy.deepcopy(one))) == 0


def test_the_distance_is_of_parameters_alone() -> None:
    one, other = Everything(1), Everything(1)
    with torch.no_grad():
        for buffer in other.buffers():
            buffer.copy_(torch.zeros_like(buffer))
    assert float(relative_distance(one, other)) == 0


def test_an_update_shrinks_the_distance_to_its_share() -> None:
    teacher, student = small_model(1), small_model(2)
    before = float(relative_distance(teacher, student))
    update_teacher(teacher, student, 0.6)
    assert float(relative_distance(teacher, student)) == pytest.approx(0.6 * before, rel=1e-5)  # float32
    assert before > 0.1
