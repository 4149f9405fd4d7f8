"""F(theta + mu z) is what a copy whose weights were really moved computes, and theta is never written."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from moved_copies import moved_copy
from tiny_models import IDS, MASK, adapted, gaussian, tiny_module, with_values
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from seedtune.errors import ModelError
from seedtune.models import answer_head, lora
from seedtune.space import Space, bind, bound_weights, copied, digest, space_of
from seedtune.zo import noise
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturbation, Perturber

GAUSSIAN, RADEMACHER = Distribution.GAUSSIAN, Distribution.RADEMACHER
FAMILIES = ("llama", "qwen2", "gemma2", "opt", "gpt2", "bert", "roberta", "bert_classifier")
ADAPTED = {"llama": ("CAUSAL_LM", ("q_proj", "v_proj")), "gpt2": ("CAUSAL_LM", ()), "bert_classifier": ("SEQ_CLS", ())}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
POINT = Perturbation(7, 0.05, GAUSSIAN)
pytestmark = pytest.mark.usefixtures("one_thread")


def with_adapters(family: str) -> torch.nn.Module:
    task_type, targets = ADAPTED[family]
    return with_values(adapted(tiny_module(family), task_type, targets))


def whole_space(module: torch.nn.Module) -> Space:
    return space_of(module, [name for name, _ in module.named_parameters()])


def output(module: torch.nn.Module) -> torch.Tensor:
    return module(input_ids=IDS, attention_mask=MASK).logits.detach()


@contextmanager
def recorded(monkeypatch):
    """The number of bytes of every tensor piece that is perturbed meanwhile."""
    sizes, plain = [], noise.perturb
    with monkeypatch.context() as patch:
        patch.setattr(noise, "perturb", lambda out, *rest: (sizes.append(out.nbytes), plain(out, *rest))[1])
        yield sizes


def assert_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(found.float(), expected.float())


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_equals_that_of_a_moved_copy(family, dtype):
    module = tiny_module(family).to(dtype)
    space = whole_space(module)
    for point in (POINT, Perturbation(2**64 - 1, -0.03, RADEMACHER)):
        expected = output(moved_copy(module, space, point))
        with Perturber(module, space).at(point):
            assert_bits(output(module), expected)
        with Perturber(module, space, scratch_bytes=200).at(point):
            assert_close(output(module), expected)
        assert not torch.equal(output(module), expected)


@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("family", ADAPTED)
def test_adapters_alone_are_perturbed(family, distribution):
    module = with_adapters(family)
    space = space_of(module, [name for name, _ in module.named_parameters() if lora.is_adapter(name)])
    point = Perturbation(3, 0.05, distribution)
    for scratch_bytes in (2**20, 40):
        with Perturber(module, space, scratch_bytes).at(point):
            assert_close(output(module), output(moved_copy(module, space, point)))
    assert not torch.equal(output(module), output(moved_copy(module, space, point)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "roberta"])
def test_a_head_that_answers_at_few_positions_is_perturbed(family, monkeypatch):
    module = tiny_module(family)
    answer_head.install(module)
    space, rows, columns = whole_space(module), torch.tensor([0, 1]), torch.tensor([4, 2])
    for candidates in (None, torch.tensor([7, 31, 8])):
        selection = answer_head.Selection(rows, columns, candidates)
        with answer_head.answering_at(selection):
            expected = output(moved_copy(module, space, POINT))
            with Perturber(module, space).at(POINT):
                assert_bits(output(module), expected)
    with answer_head.answering_at(selection), recorded(monkeypatch) as sizes, Perturber(module, space).at(POINT):
        output(module)
    assert max(sizes) < module.get_output_embeddings().weight.nbytes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_point_gives_the_same_bits_again(family):
    module = tiny_module(family)
    perturber = Perturber(module, whole_space(module), 500)
    results = []
    for point in (POINT, Perturbation(8, 0.05, GAUSSIAN), POINT):
        with perturber.at(point):
            results.append(output(module))
    assert_bits(results[2], results[0])
    assert not torch.equal(results[1], results[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_distance_is_theta_itself(family):
    module = tiny_module(family)
    perturber, expected = Perturber(module, whole_space(module)), output(module)
    with perturber.at(None):
        assert_bits(output(module), expected)
    with perturber.at(Perturbation(7, 0.0, GAUSSIAN)):
        assert_bits(output(module), expected)


class Bricks(torch.nn.Module):
    """One use of parameters that is not a plain layer's; `use` reads them in this module's own forward."""

    def __init__(self, use, **shapes):
        super().__init__()
        self.use = use
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(gaussian(name, shape), requires_grad=False))

    def forward(self, *args):
        return self.use(self, *args)


def layer(make, *args, **options) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        module = make(*args, **options)
    for name, parameter in module.named_parameters():
        parameter.data.copy_(gaussian(name, tuple(parameter.shape)))
    return module.eval().requires_grad_(False)


X = gaussian("x", (2, 3, 4))
COLUMN = IDS[:, 1:2]  # flattened, it has a stride of 5
USES = {
    "linear with names": (Bricks(lambda m, x: functional.linear(input=x, weight=m.w, bias=m.b), w=(6, 4), b=(6,)), X),
    "linear of a vector": (Bricks(lambda m, x: functional.linear(x, m.w), w=(4,)), X),
    "linear of parameters": (Bricks(lambda m, x: functional.linear(m.x, m.w) @ x, x=(5, 4), w=(2, 4)), X[:, :2]),
    "tuned bias only": (Bricks(lambda m, x: functional.linear(x, torch.ones(2, 4), m.b), b=(2,)), X),
    "list of parameters": (Bricks(lambda m, x: torch.cat([m.a, x[0], m.b]), a=(1, 4), b=(2, 4)), X),
    "list in a list": (Bricks(lambda m, x: torch.block_diag(*[m.a, x[0]]), a=(1, 4)), X),
    "operators": (Bricks(lambda m, x: (x * m.a + m.b).mul(m.c.exp()) @ m.d.T, a=(4,), b=(4,), c=(), d=(3, 4)), X),
    "indexing": (Bricks(lambda m, x: x + m.table[1:2, 2], table=(3, 4, 4)), X),
    "embedding by names": (Bricks(lambda m, x: functional.embedding(input=x, weight=m.w), w=(32, 3)), IDS),
    "embedding of a transpose": (Bricks(lambda m, x: functional.embedding(x, m.w.T), w=(3, 32)), IDS),
    "short indices": (Bricks(lambda m, x: functional.embedding(x.int(), m.w), w=(32, 3)), IDS),
    "strided indices": (Bricks(lambda m, x: functional.embedding(x, m.w), w=(32, 3)), COLUMN),
    "one index": (Bricks(lambda m, x: functional.embedding(x[0, 0], m.w), w=(32, 3)), IDS),
    "no index": (Bricks(lambda m, x: functional.embedding(x[:0], m.w), w=(32, 3)), IDS),
    "embedding": (layer(torch.nn.Embedding, 32, 3, padding_idx=0), IDS),
    "embedding of bounded norm": (layer(torch.nn.Embedding, 32, 3, max_norm=1.0), IDS),
    "embedding bag": (layer(torch.nn.EmbeddingBag, 32, 3), IDS),
    "convolution": (layer(torch.nn.Conv1d, 3, 5, 2), X),
    "layer norm": (layer(torch.nn.LayerNorm, 4), X),
    "recurrent": (layer(torch.nn.LSTM, 4, 3), X),
    "attention": (layer(torch.nn.TransformerEncoderLayer, 4, 2, 8), X),
    "linear": (layer(torch.nn.Linear, 4, 7), X),
    "bilinear": (layer(torch.nn.Bilinear, 4, 4, 2), (X, X)),
}


@pytest.mark.parametrize("scratch_bytes", [2**20, 1])
@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_parameter_is_seen(use, scratch_bytes):
    module, inputs = USES[use]
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    space = whole_space(module)
    before = copied(bound_weights(module, space))
    expected = moved_copy(module, space, POINT)(*inputs)
    with Perturber(module, space, scratch_bytes).at(POINT):
        found = module(*inputs)
    for got, wanted in zip(_tensors(found), _tensors(expected), strict=True):
        torch.testing.assert_close(got, wanted)
    assert digest(bound_weights(module, space)) == digest(before)


def _tensors(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [tensor for part in value for tensor in _tensors(part)]


def test_weights_that_are_not_contiguous_keep_their_row_major_coordinates():
    for module, inputs in ((layer(torch.nn.Linear, 4, 6), X), (layer(torch.nn.Embedding, 32, 4), IDS)):
        space, straight = whole_space(module), module.weight.data
        expected = moved_copy(module, space, POINT)(inputs)
        module.weight.data = straight.t().contiguous().t()
        for scratch_bytes in (2**20, 50):
            with Perturber(module, space, scratch_bytes).at(POINT):
                torch.testing.assert_close(module(inputs), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 3000), st.booleans(), st.sampled_from(DTYPES))
@example(7, 4, 1, True, torch.float32)
@example(5, 4, 32, True, torch.bfloat16)
def test_a_linear_layer_is_cut_into_chunks_that_fit(num_rows, row, scratch_bytes, has_bias, dtype):
    module = layer(torch.nn.Linear, row, num_rows, has_bias).to(dtype)
    space, inputs = whole_space(module), gaussian("inputs", (2, 3, row)).to(dtype)
    perturber = Perturber(module, space, scratch_bytes)
    with pytest.MonkeyPatch.context() as patch, recorded(patch) as sizes, perturber.at(POINT):
        found = module(inputs)
    assert_close(found, moved_copy(module, space, POINT)(inputs))
    row_bytes = row * module.weight.element_size()
    chunks = sizes[has_bias:]
    assert sum(chunks) == module.weight.nbytes
    assert max(chunks) <= max(scratch_bytes, row_bytes)
    assert len(chunks) == -(-num_rows // max(1, scratch_bytes // row_bytes))


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        views = isinstance(made, torch.Tensor) and made._is_view()
        if isinstance(made, torch.Tensor) and not views and func is not torch.ops.aten.detach.default:
            self.num_elements = max(self.num_elements, made.numel())
        return made


def test_nothing_of_the_size_of_a_table_is_made():
    module = torch.nn.Sequential(layer(torch.nn.Embedding, 5000, 8), layer(torch.nn.Linear, 8, 5000))
    module[1].weight = module[0].weight
    space = whole_space(module)
    picked = torch.nn.Sequential(module[0])
    with Perturber(picked, space_of(picked, ["0.weight"])).at(POINT), Largest() as largest:
        picked(IDS)
    assert 0 < largest.num_elements <= IDS.numel() * 8
    with Perturber(module, space, scratch_bytes=4096).at(POINT), Largest() as largest:
        module(IDS[:1, :2])
    assert largest.num_elements == 2 * 5000  # the output; the bias is half of that


def test_a_tied_tensor_has_one_direction():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = layer(torch.nn.Embedding, 32, 4), layer(torch.nn.Linear, 4, 32, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.table(ids))

    module = Tied().requires_grad_(False)
    space = whole_space(module)
    assert [spec.name for spec in space.tensors] == ["table.weight"]
    table = moved_copy(module, space, POINT).table.weight
    for scratch_bytes in (2**20, 50):
        with Perturber(module, space, scratch_bytes).at(POINT):
            torch.testing.assert_close(module(IDS), table[IDS] @ table.T)


def test_an_owner_within_an_owner_is_perturbed_once():
    """As RoBERTa's head, which owns the bias that its decoder owns too."""
    inner = layer(torch.nn.Linear, 4, 2)
    module = Bricks(lambda m, x: m.inner(x) + m.bias + inner.weight.sum())
    module.inner, module.bias = inner, inner.bias
    space = whole_space(module)
    z = noise.values(7, space.tensors[0].start, 2, GAUSSIAN)
    with Perturber(module, space).at(POINT):
        got = module(torch.zeros(1, 4)) - 2 * inner.bias - inner.weight.sum()
    moved = 0.05 * noise.values(7, space.tensors[1].start, 8, GAUSSIAN).sum()
    torch.testing.assert_close(got[0], 2 * 0.05 * z + moved)


def broken(module, place: str):
    """A handle of a hook that raises before, in the middle of, or after the layers."""

    def fail(*_):
        raise RuntimeError("no more memory")

    places = [m for m in module.modules() if m._parameters]
    return places[{"first": 0, "middle": len(places) // 2, "last": -1}[place]].register_forward_hook(fail)


@pytest.mark.parametrize("place", ["first", "middle", "last", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_theta_and_the_module_are_as_before(family, place):
    module = tiny_module(family).to(torch.bfloat16)
    space = whole_space(module)
    parameters = dict(module.named_parameters())
    before, storage = copied(bound_weights(module, space)), [p.data_ptr() for p in parameters.values()]
    attributes = [dict(vars(child)) for child in module.modules()]
    handle = place and broken(module, place)
    try:
        with Perturber(module, space, 300).at(POINT):
            output(module)
    except RuntimeError as error:
        assert place and str(error) == "no more memory"
    if handle:
        handle.remove()
    assert digest(bound_weights(module, space)) == digest(before)
    assert [p.data_ptr() for p in module.parameters()] == storage
    assert all(found is parameters[name] for name, found in module.named_parameters())
    for child, known in zip(module.modules(), attributes, strict=True):
        assert vars(child).keys() == known.keys()
    assert_bits(output(module), output(moved_copy(module, space, Perturbation(1, 0.0, GAUSSIAN))))


def test_a_forward_set_on_the_instance_is_used_and_put_back():
    module = torch.nn.Sequential(layer(torch.nn.Linear, 4, 4), layer(torch.nn.Linear, 4, 4))
    own = module[0].forward
    module[0].forward = doubled = lambda x: 2 * own(x)
    space = whole_space(module)
    z = moved_copy(torch.nn.Sequential(module[0], module[1]), space, POINT)
    with pytest.raises(KeyError), Perturber(module, space).at(POINT):
        raise KeyError
    assert module[0].forward is doubled and "forward" not in vars(module[1])
    with Perturber(module, space).at(POINT):
        found = module(X)
    first = 2 * functional.linear(X, z[0].weight, z[0].bias)
    torch.testing.assert_close(found, functional.linear(first, z[1].weight, z[1].bias))
    assert module[0].forward is doubled and "forward" not in vars(module[1])


@pytest.mark.parametrize("point", [None, POINT])
def test_no_graph_is_built(point):
    module = tiny_module("llama").requires_grad_(True)
    tuned = [name for name, _ in module.named_parameters() if "layers.0" in name]  # the others need gradients as well
    with Perturber(module, space_of(module, tuned)).at(point):
        logits = module(input_ids=IDS).logits
    assert logits.grad_fn is None and not logits.requires_grad
    assert torch.is_grad_enabled() and all(p.requires_grad and p.grad is None for p in module.parameters())
    assert module(input_ids=IDS).logits.requires_grad


def test_weights_bound_later_are_the_ones_perturbed():
    module = tiny_module("opt")
    space = whole_space(module)
    perturber = Perturber(module, space)
    other = {name: tensor * 0.5 for name, tensor in bound_weights(module, space).items()}
    bind(module, other)
    with perturber.at(POINT):
        found = output(module)
    assert_bits(found, output(moved_copy(module, space, POINT)))


def test_several_forwards_at_one_point():
    module = tiny_module("llama")
    with Perturber(module, whole_space(module)).at(POINT):
        assert_bits(output(module), output(module))


def test_a_tensor_that_no_forward_uses_is_named():
    module = tiny_module("llama")
    module.spare = torch.nn.Linear(2, 3)
    with pytest.raises(ModelError) as caught, Perturber(module, whole_space(module)).at(POINT):
        output(module)
    assert str(caught.value) == (
        "tensor 'spare.bias' (2 in all) is tuned but no forward pass of its module used it: name the "
        "tensors to tune with model.trainable, or under LoRA the modules with model.lora_targets"
    )


def test_asking_for_a_shape_is_not_a_use():
    module = Bricks(lambda m, x: x.new_zeros(m.w.shape, dtype=m.w.dtype, device=m.w.device), w=(3,))
    with pytest.raises(ModelError, match="tensor 'w' "), Perturber(module, whole_space(module)).at(POINT):
        module(X)
