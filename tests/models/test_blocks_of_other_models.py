"""Models that are not of transformers: what else can be cut, and what is said of those that cannot."""

from functools import partial

import pytest
import torch
from tiny_models import gaussian
from torch.nn import Embedding, LayerNorm, Linear, ModuleList

from seedtune.errors import ModelError
from seedtune.models.blocks import cut_before, num_layers

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 4, 31, 0]])
LOOKED_FOR = (
    "; looked for a ModuleList of at least 2 layers that run one after another, in order, each once and each on the "
    "output of the one before: use an estimator without blocks, or another model"
)


@torch.no_grad()
def output(module: torch.nn.Module) -> torch.Tensor:
    return module(input_ids=IDS, attention_mask=torch.ones_like(IDS))[0]


class Stack(torch.nn.Module):
    """An embedding, four linear layers and a norm; `run` says how they are put together."""

    def __init__(self, run, num_layers: int = 4):
        super().__init__()
        self.run = run
        with torch.random.fork_rng(devices=[]):
            self.table, self.norm = Embedding(32, 6), LayerNorm(6)
            self.bias = Embedding(32, 6)
            self.layers = ModuleList(Linear(6, 6) for _ in range(num_layers))
            self.scale = torch.nn.Parameter(torch.ones(6))
        for name, parameter in self.named_parameters():
            parameter.data.copy_(gaussian(name, tuple(parameter.shape)))
        if run is sharing:
            self.around, self.layers[1] = Around(self.bias), Around(self.norm)

    def forward(self, input_ids, attention_mask):
        return (self.run(self, input_ids, attention_mask),)


def plain(self, ids, mask, order=range(4)):
    hidden = self.table(ids)
    for index in order:
        hidden = torch.tanh(self.layers[index](hidden))
    return self.norm(hidden)


def writing(self, ids, mask):
    """Each value that a module gave is overwritten by the code around it."""
    hidden, bias = self.table(ids), self.bias(ids)
    hidden += 1
    bias += 1
    for layer in self.layers:
        hidden = layer(hidden + bias).mul_(1.5)
    return self.norm(hidden).add_(1)


class Around(torch.nn.Module):
    """Calls a module that others call too."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, value):
        return 2 * self.inner(value)


def sharing(self, ids, mask):
    """Modules call each other's: an embedding one that stands beside it, the second layer the first's norm."""
    hidden, bias = self.norm(self.around(ids)), self.bias(ids)
    for layer in self.layers:
        hidden = torch.tanh(layer(hidden) + bias)
    return self.norm(hidden)


def biased(self, ids, mask):
    """What `bias` gives is added before each layer, the table's rows in the first alone."""
    hidden, bias = self.table(ids), self.bias(ids)
    for layer in self.layers:
        hidden = torch.tanh(layer(hidden + bias))
    return self.norm(hidden)


def scaled(self, ids, mask):
    """The model itself reads a parameter, on both sides of any cut, and runs its norm twice."""
    hidden = self.norm(self.table(ids)) * self.scale
    for layer in self.layers:
        hidden = torch.tanh(layer(hidden) * self.scale)
    return self.norm(hidden)


def skipping(self, ids, mask):
    """The last layer reads what the first gave."""
    first = self.layers[0](self.table(ids))
    return self.layers[3](first + self.layers[2](self.layers[1](first)))


def looking(self, ids, mask):
    """Fails where the table's rows are no numbers, so they are needed."""
    if self.table(ids).isnan().any():
        raise ValueError("no numbers")
    return plain(self, ids, mask)


@pytest.mark.parametrize("k", range(1, 5))
@pytest.mark.parametrize("run", [plain, writing, sharing, biased, scaled, looking])
def test_other_ways_to_write_a_model(run, k):
    module = Stack(run)
    cut, call = cut_before(module, k), partial(output, module)
    activations = cut.prefix(call)
    for _ in range(2):
        assert torch.equal(cut.suffix(call, activations), call())


def test_only_what_is_read_behind_the_cut_is_kept():
    module = Stack(biased)
    assert cut_before(module, 2).spared == {module.table}
    assert cut_before(module, 4).spared == {module.table, module.bias}
    module = Stack(looking)
    assert cut_before(module, 4).spared == set()


def test_what_runs_on_both_sides_is_of_block_1_and_shared():
    cut = cut_before(Stack(scaled), 2)
    assert cut.shared == {"scale", "norm.weight", "norm.bias"}
    assert cut.block1 == cut.shared | {f"layers.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")} | {
        "table.weight"
    }


def test_asking_for_a_type_is_not_a_read():
    module = Stack(lambda self, ids, mask: plain(self, ids.to(self.norm.weight.device), mask) * self.scale.numel())
    assert not cut_before(module, 2).block1 & {"norm.weight", "norm.bias", "scale"}


def test_a_layer_that_is_read_later_can_be_cut_behind():
    module = Stack(skipping)
    call = partial(output, module)
    for k in (1, 4):
        cut = cut_before(module, k)
        assert torch.equal(cut.suffix(call, cut.prefix(call)), call())
    with pytest.raises(ModelError) as caught:
        cut_before(module, 2)
    assert str(caught.value) == (
        "Stack cannot be cut in two: layer 2 or what follows reads more of the layers before than the last one's output"
        + LOOKED_FOR
    )


def test_the_layers_are_the_list_with_most_parameters():
    module = Stack(plain)
    module.small = ModuleList(Linear(1, 1) for _ in range(9))
    assert num_layers(module) == 4


def in_order(*order):
    return Stack(partial(plain, order=order))


UNCUTTABLE = {
    "its ModuleLists are 'layers' of 1": lambda: Stack(partial(plain, order=[0]), num_layers=1),
    "the 4 members of 'layers' ran in the order [3, 2, 1, 0]": lambda: in_order(3, 2, 1, 0),
    "the 4 members of 'layers' ran in the order [0, 1, 2, 3, 0]": lambda: in_order(0, 1, 2, 3, 0),
    "the 4 members of 'layers' ran in the order [0, 2, 3]": lambda: in_order(0, 2, 3),
    "its trial on three tokens failed (IndexError: index 7 is out of range)": lambda: in_order(7),
}


@pytest.mark.parametrize("found", UNCUTTABLE)
def test_a_model_that_cannot_be_cut(found):
    with pytest.raises(ModelError) as caught:
        cut_before(UNCUTTABLE[found](), 1)
    assert str(caught.value) == f"Stack cannot be cut in two: {found}{LOOKED_FOR}"


def test_a_model_without_layers_has_none_to_count():
    with pytest.raises(ModelError) as caught:
        num_layers(torch.nn.Sequential(Linear(2, 2), Linear(2, 2)))
    assert str(caught.value) == f"Sequential cannot be cut in two: it has no ModuleList{LOOKED_FOR}"
