"""Several directions in one forward: the losses of each alone, for every family, and a word where that cannot be."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_models import adapted, as_loaded, batch_of, gaussian, tiny_module, with_values
from torch.nn import functional

from seedtune.data.batches import Batch
from seedtune.errors import ModelError
from seedtune.models import lora
from seedtune.models.batched_forward import batched_suffix
from seedtune.models.blocks import cut_before
from seedtune.models.encoder import EncoderWithHead
from seedtune.models.load import Tuned
from seedtune.models.objective import loss
from seedtune.space import bound_weights, digest, space_of
from seedtune.zo import batched, noise
from seedtune.zo.batched import each_at
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturbation, Perturber

NUM_LAYERS, K, Q = 3, 1, 4
FAMILIES = ("llama", "qwen2", "gemma2", "opt", "gpt2", "bert", "roberta", "distilbert", "bert_classifier", "encoder")
ADAPTED = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert_classifier": "SEQ_CLS"}
SEQUENCES = [[5, 6, 7, 8, 9], [10, 11, 4], [9, 6, 13, 12]]
CHOICES = dict(rows=[0, 1, 2], columns=[4, 2, 3], labels=[0, 1, 1])
BATCHES = {
    "choices": batch_of(SEQUENCES, **CHOICES, candidates=[7, 31, 8]),
    "long answers": batch_of(
        [[5, 6, 7, 8], [5, 6, 9, 8, 4], [5, 11, 3], [5, 11, 13, 12]],
        rows=[0, 0, 1, 1, 1, 2, 3, 3], columns=[2, 3, 2, 3, 4, 2, 2, 3], targets=[8, 1, 8, 4, 2, 1, 12, 3],
        labels=[1, 0], num_examples=2,
    ),
    "texts": batch_of(SEQUENCES, rows=[0, 0, 1, 2, 2, 2], columns=[2, 3, 1, 0, 1, 2], targets=[8, 9, 4, 6, 13, 12]),
}  # fmt: skip
POINTS = [Perturbation(key, 0.03, Distribution.GAUSSIAN) for key in (3, 8, 5, 1)]
pytestmark = pytest.mark.usefixtures("one_thread")


def tuned(family: str, dtype: torch.dtype = torch.float32, is_adapted: bool = False) -> Tuned:
    """A tiny model as `load` would make it, with all its tensors tuned, or its adapters."""
    module = tiny_module(family, NUM_LAYERS).to(dtype)
    if is_adapted:
        module = adapted(module, ADAPTED[family])
    if family == "encoder":
        module = EncoderWithHead(module, 2)
    names = [name for name, _ in module.named_parameters() if not is_adapted or lora.is_adapter(name)]
    return as_loaded(with_values(module), family, names)


def batch_for(model: Tuned, name: str = "choices") -> Batch:
    return batch_of(SEQUENCES, **CHOICES) if model.kind == "classifier" else BATCHES[name]


def perturber_of(model: Tuned, scratch_bytes: int = 2**22) -> Perturber:
    return Perturber(model.module, space_of(model.module, model.trainable), scratch_bytes)


def both_ways(model: Tuned, batch: Batch, scratch_bytes: int = 2**22) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [Q] of one prefix and Q suffixes: in one forward, and one by one."""
    cut, perturber, whole = cut_before(model.module, K), perturber_of(model, scratch_bytes), partial(loss, model, batch)
    first, second, shared = (
        [Perturbation(point.key, point.mu, point.distribution, names) for point in POINTS]
        for names in (cut.block1, cut.block2, cut.shared)
    )
    with perturber.at(first[0]):
        kept = cut.prefix(whole)
    with perturber.at(shared[0]), each_at(perturber, second):
        found = batched_suffix(cut)(whole, kept, Q)
    one_by_one = []
    for point in second:
        with perturber.at(shared[0], point):
            one_by_one.append(cut.suffix(whole, kept))
    return torch.stack(found), torch.stack(one_by_one)


def assert_same(found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-6) -> None:
    assert found.dtype == expected.dtype == torch.float32 and len(set(expected.tolist())) == Q
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("scratch_bytes", [2**22, 2**9])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_each_direction_alone(family, scratch_bytes):
    """With a small scratch every linear layer goes in chunks, with a large one in one product."""
    model = tuned(family)
    before = digest(bound_weights(model.module, perturber_of(model).space))
    assert_same(*both_ways(model, batch_for(model), scratch_bytes))
    assert digest(bound_weights(model.module, perturber_of(model).space)) == before
    assert all("forward" not in vars(child) for child in model.module.modules())


@pytest.mark.parametrize("scratch_bytes", [2**22, 2**6])
@pytest.mark.parametrize("family", ADAPTED)
def test_adapters_alone(family, scratch_bytes):
    model = tuned(family, is_adapted=True)
    assert_same(*both_ways(model, batch_for(model), scratch_bytes))


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("family, is_adapted", [("llama", False), ("llama", True), ("opt", False), ("gpt2", False)])
def test_every_kind_of_batch(family, is_adapted, name):
    model = tuned(family, is_adapted=is_adapted)
    assert_same(*both_ways(model, batch_for(model, name)))


@pytest.mark.parametrize("num", [1, 2, 4])
def test_batches_whose_size_is_that_of_a_table(num):
    """Rows that all sequences share are not repeated, whatever their number."""
    ids = [[5 + i, 6, 7 + i, 8] for i in range(num)]
    for family in ("llama", "gpt2", "opt"):
        batch = batch_of(ids, rows=list(range(num)), columns=[3] * num, labels=[0] * num, candidates=[7, 8])
        assert_same(*both_ways(tuned(family), batch))


@pytest.mark.parametrize("dtype, rtol", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("family, is_adapted", [("llama", False), ("gpt2", False), ("opt", False), ("llama", True)])
def test_16_bit_weights(family, is_adapted, dtype, rtol):
    """Products of other shapes round elsewhere: within a few units in the last of 8 (bfloat16) or 11 bits."""
    model = tuned(family, dtype, is_adapted)
    found, expected = both_ways(model, batch_for(model))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


# Function by function


class Calls(torch.nn.Module):
    """Gives its tensors and rows [n, 6] to a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(gaussian("weight", (6, 6)))
        self.scale = torch.nn.Parameter(gaussian("scale", (6,)))
        self.frozen = torch.nn.Parameter(gaussian("frozen", (6,)))
        self.table = torch.nn.Parameter(gaussian("table", (6, 6)))

    def forward(self, rows):
        return self.function(self, rows)


FUNCTIONS = {
    "linear": lambda m, x: functional.linear(x, m.weight, m.scale),
    "frozen bias": lambda m, x: functional.linear(x * m.scale, m.weight, m.frozen),
    "bias alone": lambda m, x: functional.linear(x, m.table, m.scale) * m.weight[0],
    "norm": lambda m, x: functional.layer_norm(x @ m.weight, (6,), m.scale, m.frozen),
    "one plus": lambda m, x: x * (1.0 + m.scale.float()) @ m.weight.T,
    "flat product": lambda m, x: torch.addmm(m.scale, x.view(-1, 6), m.weight).view(x.shape),
    "shapes": lambda m, x: x.to(m.weight.dtype) * m.scale.shape[0] @ m.weight * m.scale,
    "lookup": lambda m, x: functional.embedding((x[:, :, 0] > 0).long(), m.weight) * m.scale,
}


def calling(function) -> tuple[Calls, Perturber, torch.Tensor]:
    module = Calls(function).requires_grad_(False)
    return module, Perturber(module, space_of(module, ["weight", "scale"])), gaussian("rows", (2, 3, 6))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_rows(name):
    module, perturber, rows = calling(FUNCTIONS[name])
    with each_at(perturber, POINTS):
        found = module(rows.repeat(Q, 1, 1)).unflatten(0, (Q, 2))
    for point, own in zip(POINTS, found, strict=True):
        with perturber.at(point):
            torch.testing.assert_close(own, module(rows), rtol=1e-6, atol=1e-6)


SIDES = [None, POINTS[0], replace(POINTS[0], mu=-POINTS[0].mu), replace(POINTS[1], mu=-POINTS[1].mu)]


@pytest.mark.parametrize("small_bytes", [2**18, 0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_theta_itself_and_both_sides_of_a_direction(name, small_bytes, monkeypatch):
    """In one product, and chunk by chunk."""
    monkeypatch.setattr(batched, "_SMALL_BYTES", small_bytes)
    module, perturber, rows = calling(FUNCTIONS[name])
    with each_at(perturber, SIDES):
        found = module(rows.repeat(len(SIDES), 1, 1)).unflatten(0, (len(SIDES), 2))
    for point, own in zip(SIDES, found, strict=True):
        with perturber.at(point):
            torch.testing.assert_close(own, module(rows), rtol=1e-6, atol=1e-6)


REFUSED = {
    "einsum": (lambda m, x: torch.einsum("ij,...j->i...", m.weight, x * m.scale), [8, 3, 6]),
    "linear": (lambda m, x: functional.linear(x[:1] * 1.0, m.weight), [1, 3, 6]),
    "add": (lambda m, x: x + (torch.ones(3, 6) + m.scale), [3, 6]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_that_are_not_of_rows_are_refused_by_name(name):
    function, shape = REFUSED[name]
    module, perturber, rows = calling(function)
    before = digest(bound_weights(module, perturber.space))
    with pytest.raises(ModelError) as caught, each_at(perturber, POINTS):
        module(rows.repeat(Q, 1, 1))
    assert str(caught.value) == (
        f"{name} was given a tuned tensor with {shape}: not rows of 4 points, each of which has weights of its own"
    )
    assert digest(bound_weights(module, perturber.space)) == before and "forward" not in vars(module)


def test_what_is_made_of_a_large_tensor_alone_is_refused():
    """It would be held once for each direction."""
    module, _, rows = calling(lambda m, x: x * m.scale @ m.weight.T)
    perturber = Perturber(module, space_of(module, ["weight", "scale"]), scratch_bytes=400)
    with pytest.raises(ModelError, match="was given a tuned tensor with nothing else"), each_at(perturber, POINTS):
        module(rows.repeat(Q, 1, 1))


def test_what_no_forward_used_is_named():
    module, perturber, rows = calling(lambda m, x: x @ m.weight)
    with pytest.raises(ModelError, match=r"^tensor 'scale' \(1 in all\) is tuned but no forward"):  # noqa: SIM117
        with each_at(perturber, POINTS):
            module(rows.repeat(Q, 1, 1))


def test_a_forward_that_raises_leaves_everything_as_it_was():
    module, perturber, rows = calling(lambda m, x: (x * m.scale) @ m.weight / (1 // 0))
    before = digest(bound_weights(module, perturber.space))
    with pytest.raises(ZeroDivisionError), each_at(perturber, POINTS):
        module(rows.repeat(Q, 1, 1))
    assert digest(bound_weights(module, perturber.space)) == before and "forward" not in vars(module)


def test_weights_are_perturbed_with_the_bits_of_a_single_evaluation(monkeypatch):
    written, plain = {}, noise.perturb

    def noting(out, weights, key, start, *rest):
        plain(out, weights, key, start, *rest)
        written.setdefault((key, start), []).append(out.clone())

    monkeypatch.setattr(noise, "perturb", noting)
    model = tuned("llama", torch.bfloat16)
    both_ways(model, batch_for(model), scratch_bytes=2**9)
    pairs = {place: pieces for place, pieces in written.items() if len(pieces) == 2}
    assert len(pairs) > 40 and all(torch.equal(*pieces) for pieces in pairs.values())


def test_points_of_unlike_tensors_are_refused():
    _, perturber, _ = calling(FUNCTIONS["linear"])
    unlike = [POINTS[0], Perturbation(4, 0.03, Distribution.GAUSSIAN, frozenset({"scale"}))]
    for points in (unlike, [], [None]):
        with pytest.raises(ValueError, match=f"^{len(points)} points move unlike tensors, or none: "):  # noqa: SIM117
            with each_at(perturber, points):
                pass
