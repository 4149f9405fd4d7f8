"""The two blocks of a cut model at points of their own: a prefix and a suffix give what a moved copy gives whole."""

from functools import partial

import pytest
import torch
from moved_copies import moved_apart
from tiny_models import IDS, MASK, adapted, gaussian, tiny_module, with_values

from seedtune.errors import ModelError
from seedtune.models import lora
from seedtune.models.blocks import Cut, cut_before
from seedtune.space import bound_weights, copied, digest, space_of
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturbation, Perturber

NUM_LAYERS, K = 4, 2
GAUSSIAN = Distribution.GAUSSIAN
FAMILIES = ("llama", "qwen2", "gemma2", "opt", "gpt2", "bert", "roberta", "distilbert", "bert_classifier")
pytestmark = pytest.mark.usefixtures("one_thread")


def adapted_at(layers: list[int]) -> torch.nn.Module:
    """A llama with LoRA on the given layers alone."""
    targets = tuple(f"model.layers.{i}.self_attn.{name}" for i in layers for name in ("q_proj", "v_proj"))
    return with_values(adapted(tiny_module("llama", NUM_LAYERS), "CAUSAL_LM", targets))


def perturber_of(module: torch.nn.Module) -> Perturber:
    """Of the adapters, or of every parameter where there are none."""
    names = [name for name, _ in module.named_parameters()]
    return Perturber(module, space_of(module, [name for name in names if lora.is_adapter(name)] or names))


def output(module: torch.nn.Module) -> torch.Tensor:
    return module(input_ids=IDS, attention_mask=MASK)[0]


def point(key: int, mu: float, names: frozenset[str] | None = None) -> Perturbation:
    return Perturbation(key, mu, GAUSSIAN, names)


def at_blocks(perturber: Perturber, cut: Cut, first: Perturbation, second: Perturbation) -> torch.Tensor:
    call = partial(output, cut.module)
    with perturber.at(point(first.key, first.mu, cut.block1)):
        activations = cut.prefix(call)
    with perturber.at(point(first.key, first.mu, cut.shared), point(second.key, second.mu, cut.block2)):
        return cut.suffix(call, activations)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "adapted"])
def test_each_block_is_at_its_own_point(family, dtype):
    """Tied tensors included: the suffix sees them where the prefix saw them."""
    module = adapted_at([0, 1, 2, 3]) if family == "adapted" else tiny_module(family, NUM_LAYERS).to(dtype)
    perturber, cut = perturber_of(module), cut_before(module, K)
    before = digest(copied(bound_weights(module, perturber.space)))
    first, second = point(3, 0.05), point(4, -0.03)
    points = dict.fromkeys(cut.block1, first) | dict.fromkeys(cut.block2, second)
    expected = output(moved_apart(module, perturber.space, points))
    for _ in range(2):
        assert torch.equal(at_blocks(perturber, cut, first, second), expected)
    assert digest(bound_weights(module, perturber.space)) == before
    assert all("forward" not in vars(child) for child in module.modules())


@pytest.mark.parametrize("family", [*FAMILIES, "adapted"])
def test_one_point_for_both_blocks_is_that_point_of_the_whole(family):
    module = adapted_at([0, 1, 2, 3]) if family == "adapted" else tiny_module(family, NUM_LAYERS)
    perturber, cut = perturber_of(module), cut_before(module, K)
    with perturber.at(point(3, 0.05)):
        expected = output(module)
    assert torch.equal(at_blocks(perturber, cut, point(3, 0.05), point(3, 0.05)), expected)
    with perturber.at(point(3, 0.05, cut.block1), point(3, 0.05, cut.block2)):
        assert torch.equal(output(module), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_alone_moves_over_the_other_at_rest(family):
    module = tiny_module(family, NUM_LAYERS)
    perturber, cut, call = perturber_of(module), cut_before(module, K), partial(output, module)
    with perturber.at(None):
        activations = cut.prefix(call)
    for block, run in ((cut.block1, call), (cut.block2, lambda: cut.suffix(call, activations))):
        expected = output(moved_apart(module, perturber.space, dict.fromkeys(block, point(5, 0.04))))
        with perturber.at(point(5, 0.04, block)):
            assert torch.equal(run(), expected)


class Scaled(torch.nn.Module):
    """Reads a parameter of its own in its own forward, on both sides of the cut."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.table = torch.nn.Embedding(32, 6)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(NUM_LAYERS))
        self.scale = torch.nn.Parameter(torch.ones(6))
        for name, parameter in self.named_parameters():
            parameter.data.copy_(gaussian(name, tuple(parameter.shape)))

    def forward(self, input_ids, attention_mask):
        hidden = self.table(input_ids) * self.scale
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden) * self.scale)
        return (hidden,)


def test_a_model_that_reads_parameters_itself():
    module = Scaled().requires_grad_(False)
    perturber, cut = perturber_of(module), cut_before(module, K)
    assert cut.shared == {"scale"}
    first, second = point(3, 0.05), point(4, -0.03)
    points = dict.fromkeys(cut.block1, first) | dict.fromkeys(cut.block2, second)
    assert torch.equal(at_blocks(perturber, cut, first, second), output(moved_apart(module, perturber.space, points)))


# What is perturbed must be used, and once


def test_a_suffix_that_is_to_move_what_it_does_not_read():
    module = tiny_module("llama", NUM_LAYERS)
    perturber, cut, call = perturber_of(module), cut_before(module, K), partial(output, module)
    activations = cut.prefix(call)
    with pytest.raises(ModelError) as caught, perturber.at(point(3, 0.05)):
        cut.suffix(call, activations)
    assert str(caught.value) == (
        "tensor 'model.layers.0.input_layernorm.weight' (18 in all) is tuned but no forward pass of its module used "
        "it: name the tensors to tune with model.trainable, or under LoRA the modules with model.lora_targets"
    )


def test_two_points_for_one_tensor_are_refused():
    module = tiny_module("llama", NUM_LAYERS)
    perturber, cut = perturber_of(module), cut_before(module, K)
    with pytest.raises(ValueError) as caught, perturber.at(point(3, 0.05), point(4, 0.05, cut.shared)):
        output(module)
    assert str(caught.value) == "tensor 'model.embed_tokens.weight' (1 in all) is moved by two perturbations: give one"


@pytest.mark.parametrize(
    "points", [(), (None,), (None, point(3, 0.05, frozenset())), (point(3, 0.05, frozenset({"no"})),)]
)
def test_no_tensor_to_move_is_theta_itself(points):
    module = tiny_module("llama", NUM_LAYERS).requires_grad_(True)
    expected = output(module).detach()
    with perturber_of(module).at(*points):
        found = output(module)
    assert torch.equal(found, expected) and not found.requires_grad
