"""A two-point step on a GPU: the weights that its forwards see, and that it leaves, are those of a step on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.nn import functional

from seedtune.space import bound_weights, space_of
from seedtune.zo.kernels import using
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturbation, Perturber
from seedtune.zo.update import Update, apply

IDS = torch.tensor([[3], [6]])


class Seen(torch.nn.Module):
    """Gives back, to the bit, the weights that its functions receive: a look-up's, a linear layer's, a norm's."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in (("table", (7, 33)), ("weight", (40, 33)), ("bias", (40,)), ("norm", (33,))):
            value = (torch.randn(shape, generator=generator) * 0.05).to(dtype).to(device)
            setattr(self, name, torch.nn.Parameter(value, requires_grad=False))
        self.register_buffer("identity", torch.eye(33, dtype=dtype, device=device))

    def forward(self, ids: torch.Tensor) -> list[torch.Tensor]:
        looked_up = functional.embedding(ids, self.table)
        return [looked_up, functional.linear(self.identity, self.weight), self.bias * 1, self.norm * 1]


def site(dtype: torch.dtype, device: torch.device) -> tuple[Seen, Perturber]:
    """With chunks of a linear layer's rows, so that more than one begins inside it."""
    module = Seen(dtype, device)
    space = space_of(module, [name for name, _ in module.named_parameters()])
    return module, Perturber(module, space, scratch_bytes=2048)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize(
    ("dtype", "distribution"),
    [(torch.float32, Distribution.GAUSSIAN), (torch.bfloat16, Distribution.RADEMACHER)],
)
def test_forwards_see_the_weights_that_they_would_see_on_a_cpu(device, dtype, distribution):
    (here, on_cpu), (there, on_device) = site(dtype, torch.device("cpu")), site(dtype, device)
    for mu in (1e-3, -1e-3):
        point = Perturbation(2**63 + 5, mu, distribution)
        with using("torch"), on_cpu.at(point):
            expected = here(IDS)
        with using("triton"), on_device.at(point):
            found = there(IDS.to(device))
        for ours, known, at_theta in zip(found, expected, here(IDS), strict=True):
            assert_same(ours, known)
            assert not torch.equal(known, at_theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_leave_the_weights_that_they_would_leave_on_a_cpu(device, dtype):
    (here, on_cpu), (there, on_device) = site(dtype, torch.device("cpu")), site(dtype, device)
    update = Update((9, 2**64 - 1), np.array([1e-3, -0.02], np.float32), 4)
    ours, known = bound_weights(there, on_device.space), bound_weights(here, on_cpu.space)
    with using("torch"):
        apply(on_cpu.space, known, [update], Distribution.GAUSSIAN)
    with using("triton"):
        apply(on_device.space, ours, [update], Distribution.GAUSSIAN)
    for name, tensor in ours.items():
        assert_same(tensor, known[name])


@contextmanager
def synchronisation_refused() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("distribution", Distribution)
def test_nothing_waits_for_the_device_but_the_reading_of_a_loss(gpu, distribution):
    module, perturber = site(torch.bfloat16, gpu)
    weights, ids = bound_weights(module, perturber.space), IDS.to(gpu)

    def step(number: int) -> torch.Tensor:
        losses = []
        for mu in (1e-3, -1e-3):
            with perturber.at(Perturbation(number, mu, distribution)):
                losses.append(sum(value.float().square().sum() for value in module(ids)))
        apply(perturber.space, weights, [Update((number,), np.ones(1, np.float32), number)], distribution)
        return torch.stack(losses)

    step(1)  # compiles, which waits
    with synchronisation_refused():
        losses = step(2)
    assert losses.isfinite().all()


def test_a_gpu_is_served_by_triton_unless_told_otherwise(gpu):
    from seedtune.zo.kernels import kernel_for, triton_cuda

    assert kernel_for(torch.empty(1, device=gpu)) is triton_cuda
