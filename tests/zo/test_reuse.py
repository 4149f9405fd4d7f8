"""The frozen prefix is computed once a step, and nothing else changes."""

from contextlib import nullcontext

import pytest
import torch

from seedtune.space import space_of
from seedtune.zo.noise import Distribution, derive_key, values
from seedtune.zo.perturb import Perturbation, Perturber


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 6)
        self.num_calls = 0

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return torch.tanh(self.linear(value))


class Stack(torch.nn.Module):
    """Three layers and a norm; `again` runs the first layer a second time, behind all others."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(3))
        self.norm = torch.nn.LayerNorm(6)
        self.again = again
        for k, parameter in enumerate(self.parameters()):
            parameter.data.copy_(values(k, 0, parameter.numel(), Distribution.GAUSSIAN).view(parameter.shape))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            value = layer(value)
        return self.norm(self.layers[0](value) if self.again else value)


POINTS = [None] + [
    Perturbation(derive_key(0, "point", direction=k), mu, Distribution.GAUSSIAN) for k in range(3) for mu in (0.1, -0.1)
]


def losses(module: Stack, names: list[str], reuse: bool) -> list[float]:
    perturber = Perturber(module, space_of(module, names))
    value = torch.linspace(-1, 1, 30).view(5, 6)
    found = []
    with perturber.one_batch() if reuse else nullcontext():
        for point in POINTS:
            with perturber.at(point):
                found.append(float(module(value).exp().sum()))
    return found


CASES = {
    "norm": (["norm.weight", "norm.bias"], [1, 1, 1]),
    "last layer": (["layers.2.linear.weight", "norm.bias"], [1, 1, 7]),
    "middle layer": (["layers.1.linear.bias"], [1, 7, 7]),
    "first layer": (["layers.0.linear.weight"], [7, 7, 7]),
}


@pytest.mark.parametrize("case", CASES)
def test_prefix_runs_once_and_bits_are_the_same(case: str) -> None:
    names, calls = CASES[case]
    module = Stack()
    with_reuse = losses(module, names, reuse=True)
    assert [layer.num_calls for layer in module.layers] == calls
    assert with_reuse == losses(module, names, reuse=False)
    assert len(set(with_reuse)) == len(POINTS)


@pytest.mark.parametrize("names", [["norm.weight"], ["layers.1.linear.weight"], ["layers.0.linear.weight"]])
def test_a_layer_that_runs_again_behind_tuned_tensors(names: list[str]) -> None:
    module = Stack(again=True)
    assert losses(module, names, reuse=True) == losses(module, names, reuse=False)


def test_modules_are_left_as_they_were_also_after_an_error() -> None:
    module = Stack()
    perturber = Perturber(module, space_of(module, ["norm.weight"]))
    module.norm.forward = module.norm.forward
    kept = module.norm.__dict__["forward"]
    with pytest.raises(RuntimeError), perturber.one_batch(), perturber.at(POINTS[1]):
        module(torch.zeros(2, 5))
    assert module.norm.__dict__["forward"] is kept
    assert all("forward" not in each.__dict__ for each in (module, *module.layers))


def test_the_next_step_computes_anew() -> None:
    module = Stack()
    first = losses(module, ["norm.weight"], reuse=True)
    with torch.no_grad():
        module.layers[0].linear.weight.mul_(0.5)
    assert losses(module, ["norm.weight"], reuse=True) != first
