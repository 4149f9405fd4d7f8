"""Counts are those of the closed forms and of torch's own counter; counting changes no bit and runs nothing twice."""

import copy
from collections.abc import Callable

import pytest
import torch
from tiny_models import CAUSAL, MASKED, as_loaded, batch_of, gaussian, tiny_module
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from seedtune.data.batches import Batch
from seedtune.models.load import Tuned
from seedtune.models.objective import loss
from seedtune.space import space_of
from seedtune.zo.estimators import one_by_one, one_sided, two_point
from seedtune.zo.meter import WHOLE, Meter, Shape, Tally, _formulas, counted_parts, shape_of
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturbation, Perturber

SEQUENCES = [[5, 6, 7, 8, 9, 4, 3], [10, 11, 4], [9, 6, 13, 12]]
LABELS = dict(rows=[0, 1, 2], columns=[6, 2, 3], candidates=[7, 8, 30, 1], labels=[0, 1, 3])
POINT = Perturbation(7, 0.05, Distribution.GAUSSIAN)
pytestmark = pytest.mark.usefixtures("one_thread")


def tuned(family: str, dtype: torch.dtype = torch.float32) -> Tuned:
    return as_loaded(tiny_module(family).to(dtype), family)


def text_batch(num_scored: int, length: int = 7) -> Batch:
    """Three sequences, the last of them padded, with `num_scored` positions of the first two."""
    sequences = [[5 + i % 20 for i in range(length)], [7 + i % 9 for i in range(length)], [4, 5]]
    rows, columns = [i % 2 for i in range(num_scored)], [i // 2 for i in range(num_scored)]
    return batch_of(sequences, rows, columns, targets=[i % 30 for i in range(num_scored)])


def evaluation(model: Tuned, batch: Batch, point: Perturbation | None = None) -> Callable[[], float]:
    perturber = Perturber(model.module, space_of(model.module, model.trainable), scratch_bytes=2**8)

    def call() -> float:
        with perturber.at(point):
            return float(loss(model, batch))

    return call


def closed_form(model: Tuned, batch: Batch) -> int:
    """2 x parameters in products x tokens, 4 T^2 d of attention a layer, the head at scored positions only."""
    config, head = model.module.config, model.module.get_output_embeddings()
    products = [m for m in model.module.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    (num_sequences, num_tokens), num_scored = batch.input_ids.shape, len(batch.rows)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head_dim
    num_answers = head.weight.shape[0] if batch.candidates is None else len(batch.candidates)
    return (
        2 * sum(m.weight.numel() for m in products if m is not head) * num_sequences * num_tokens
        + 4 * num_tokens**2 * width * config.num_hidden_layers * num_sequences
        + 2 * num_scored * config.hidden_size * num_answers
    )


# Counts.


@pytest.mark.parametrize("point", [None, POINT])
@pytest.mark.parametrize("family", CAUSAL + MASKED)
def test_a_padded_batch_costs_what_the_closed_form_says(family, point) -> None:
    model, batch = tuned(family), batch_of(SEQUENCES, **LABELS)
    _, flops = Meter().counted(shape_of(batch), WHOLE, evaluation(model, batch, point))
    assert flops == closed_form(model, batch)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_text_batch_pays_the_vocabulary_at_scored_positions(family) -> None:
    model, batch = tuned(family), text_batch(5)
    _, flops = Meter().counted(shape_of(batch), WHOLE, evaluation(model, batch))
    assert flops == closed_form(model, batch)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_count_is_that_of_torch_where_attention_is_written_in_products(family) -> None:
    model, batch = tuned(family), batch_of(SEQUENCES, **LABELS)
    _, flops = Meter().counted(shape_of(batch), WHOLE, evaluation(model, batch))
    model.module.set_attn_implementation("eager")
    assert Meter().counted(shape_of(batch), WHOLE, evaluation(model, batch))[1] == flops
    with FlopCounterMode(display=False) as counter:
        evaluation(model, batch)()
    assert flops == counter.get_total_flops()


def test_products_that_torch_does_not_count() -> None:
    shape, matrix, vector = Shape((1, 1), None, None, 1), torch.ones(3, 5), torch.ones(5)
    assert Meter().counted(shape, WHOLE, lambda: matrix @ vector)[1] == 2 * 3 * 5
    assert Meter().counted(shape, WHOLE, lambda: vector @ vector)[1] == 2 * 5
    image, filters = torch.ones(2, 3, 8), torch.ones(4, 3, 3)
    assert Meter().counted(shape, WHOLE, lambda: functional.conv1d(image, filters))[1] == 2 * 2 * 4 * 6 * 3 * 3


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products")
def test_a_mixture_pays_for_the_experts_of_each_token() -> None:
    tokens, experts = torch.ones(6, 16, dtype=torch.bfloat16), torch.ones(2, 16, 8, dtype=torch.bfloat16)
    ends = torch.tensor([2, 6], dtype=torch.int32)
    count = Meter().counted(Shape((1, 6), None, None, 1), WHOLE, lambda: torch._grouped_mm(tokens, experts, offs=ends))
    assert count[1] == 2 * 6 * 16 * 8


QUANTISED = {
    "4 bit": ("Linear4bit", {"compute_dtype": torch.float32}),
    "8 bit": ("Linear8bitLt", {"has_fp16_weights": False}),
    "8 bit with outliers": ("Linear8bitLt", {"has_fp16_weights": False, "threshold": 6.0}),
}


@pytest.mark.filterwarnings("ignore")  # of bitsandbytes: casts, and kernels that it does not find
@pytest.mark.parametrize("is_training", [True, False])  # of 4 bits, weights are packed once training is over
@pytest.mark.parametrize("num_tokens", [1, 300])
@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_products_count_as_those_of_the_weights_they_stand_for(case, num_tokens, is_training) -> None:
    name, options = QUANTISED[case]
    layer = getattr(pytest.importorskip("bitsandbytes").nn, name)(64, 128, **options)
    layer = layer.requires_grad_(False).to("cpu").train(is_training)
    hidden, shape = gaussian("hidden", (1, num_tokens, 64)), Shape((1, num_tokens), None, None, 1)
    with torch.no_grad():
        value, flops = Meter().counted(shape, WHOLE, lambda: layer(hidden))
        assert flops == 2 * num_tokens * 64 * 128 and torch.equal(value, layer(hidden))


def test_formulas_are_of_operators_that_exist() -> None:
    assert torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in _formulas()


# Values.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", CAUSAL + MASKED)
def test_counting_changes_no_bit(family, dtype) -> None:
    model, batch = tuned(family, dtype), batch_of(SEQUENCES, **LABELS)
    for point in (None, POINT, Perturbation(9, -0.05, Distribution.RADEMACHER)):
        call = evaluation(model, batch, point)
        before = call()
        assert Meter().counted(shape_of(batch), WHOLE, call)[0] == before == call()


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bert"])
def test_gradients_of_a_counted_forward_are_the_same_bits(family) -> None:
    model, batch = tuned(family), batch_of(SEQUENCES, **LABELS)
    found = []
    for counted in (False, True):
        module = copy.deepcopy(model.module).requires_grad_(True)
        twin = Tuned(module, None, model.kind, model.trainable, family)
        with torch.enable_grad():
            call = lambda twin=twin: loss(twin, batch)  # noqa: E731
            value, flops = Meter().counted(shape_of(batch), WHOLE, call) if counted else (call(), 0)
        value.backward()
        found.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and flops == closed_form(model, batch)


def test_what_raises_passes_through_and_leaves_nothing() -> None:
    meter, shape, ones = Meter(), Shape((1, 1), None, None, 1), torch.ones(3, 5)

    def broken() -> torch.Tensor:
        return ones @ ones

    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        meter.counted(shape, WHOLE, broken)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert meter.counted(shape, WHOLE, lambda: ones @ ones.T)[1] == 2 * 3 * 5 * 3


# What is kept.


class Watched:
    """A call that says how often it ran, and whether it was watched the last time."""

    def __init__(self, call: Callable[[], float]) -> None:
        self.call, self.runs, self.is_counted = call, 0, False

    def __call__(self) -> float:
        self.runs += 1
        self.is_counted = torch.utils._python_dispatch._get_current_dispatch_mode() is not None
        return self.call()


def product(num_rows: int) -> Watched:
    """A product of 24 operations a row; its value is the number of rows."""

    def call() -> int:
        return len(torch.ones(num_rows, 4) @ torch.ones(4, 3))

    return Watched(call)


def test_a_known_shape_runs_once_and_unobserved() -> None:
    meter, calls = Meter(), product(2)
    for runs in (1, 2, 3):
        assert meter.counted(Shape((2, 4), None, None, 2), WHOLE, calls) == (2, 2 * 2 * 4 * 3)
        assert calls.runs == runs and calls.is_counted is (runs == 1)


@pytest.mark.parametrize("other", [
    (Shape((2, 5), None, None, 2), WHOLE), (Shape((2, 4), 3, None, 2), WHOLE), (Shape((2, 4), None, 2, 2), WHOLE),
    (Shape((2, 4), None, None, 2), "other"), (Shape((2, 4), None, None, 2), ("prefix", 3)),
])  # fmt: skip
def test_another_shape_or_part_is_counted_anew(other) -> None:
    meter, calls = Meter(), product(5)
    meter.counted(Shape((2, 4), None, None, 2), WHOLE, product(2))
    assert meter.counted(*other, calls) == (5, 2 * 5 * 4 * 3) and calls.is_counted


@pytest.mark.parametrize("order", [(1, 2, 5, 3), (5, 3, 1, 2), (3, 5, 2, 1)])
@pytest.mark.parametrize("family", CAUSAL)
def test_two_batches_of_one_length_tell_what_a_scored_position_costs(family, order) -> None:
    model, meter, counted = tuned(family), Meter(), []
    for length in (7, 9, 8):
        for num_scored in order:
            batch = text_batch(num_scored, length)
            call = Watched(evaluation(model, batch))
            _, flops = meter.counted(shape_of(batch), WHOLE, call)
            assert flops == closed_form(model, batch)
            counted.append(call.is_counted)
    assert counted == [True, True, False, False] + 2 * [True, False, False, False]


def test_what_is_not_affine_is_counted() -> None:
    meter = Meter()
    for size, rows in ((1, 1), (4, 2), (9, 5)):  # 24 (rows): no whole number a position from 1 to 4
        calls = product(rows)
        assert meter.counted(Shape((1, 1), None, None, 7 * size), WHOLE, calls)[1] == 24 * rows and calls.is_counted


# A step.


class Stack(torch.nn.Module):
    """Two layers of which the first is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(2))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.layers[1](torch.tanh(self.layers[0](value)))


@pytest.mark.parametrize("estimate, num_forwards", [(two_point, 6), (one_sided, 4)])
def test_a_step_pays_its_frozen_layers_once(estimate, num_forwards) -> None:
    module, value, meter = Stack(), gaussian("value", (5, 6)), Meter()
    perturber = Perturber(module, space_of(module, ["layers.1.weight"]))

    def loss_at(point: Perturbation | None) -> float:
        with perturber.at(point):
            return float(module(value).square().sum())

    plain = estimate(one_by_one(loss_at), [1, 2, 3], 0.1, Distribution.RADEMACHER)
    for frozen in (0, 7):
        tally = Tally(meter, Shape((5, 6), None, None, 5), frozen)
        probe = estimate(one_by_one(tally.metered(loss_at)), [1, 2, 3], 0.1, Distribution.RADEMACHER)
        assert (probe.scalars == plain.scalars).all()
        assert tally.runs == {WHOLE: num_forwards} and probe.num_forwards == num_forwards
        assert (
            tally.flops_of[WHOLE] == 2 * num_forwards * 2 * 5 * 6 * 6 and tally.flops == tally.flops_of[WHOLE] + frozen
        )


def test_a_step_is_watched_once_for_each_number_of_frozen_layers() -> None:
    module, value, meter = Stack().requires_grad_(False), gaussian("value", (5, 6)), Meter()
    call, found = Watched(lambda: float(module(value).sum())), []
    for num_frozen in (0, 0, 1, 1, 0):
        tally = Tally(meter, Shape((5, 6), None, None, 5, num_frozen))
        found.append(tally.metered(lambda point: call())(None) and call.is_counted)
        assert tally.flops == 2 * 2 * 5 * 6 * 6
    assert found == [True, False, True, False, False]


def test_a_step_tells_its_parts_apart() -> None:
    tally = Tally(Meter(), Shape((5, 6), None, None, 5))
    for part, size in (("prefix", 2), ("suffix", 3), ("suffix", 3)):
        assert tally.counted(part, product(size)) == size
    assert tally.runs == {"prefix": 1, "suffix": 2} and tally.flops == 24 * (2 + 3 + 3)
    assert tally.flops_of == {"prefix": 24 * 2, "suffix": 24 * 6}


def test_both_signs_and_theta_itself_cost_the_same() -> None:
    model, batch = tuned("opt"), batch_of(SEQUENCES, **LABELS)
    points = (None, POINT, Perturbation(7, -0.05, Distribution.GAUSSIAN))
    assert len({Meter().counted(shape_of(batch), WHOLE, evaluation(model, batch, p))[1] for p in points}) == 1


def test_two_blocks_cost_together_what_the_whole_costs() -> None:
    first, second, value = torch.ones(6, 9), torch.ones(9, 4), gaussian("value", (5, 6))
    meter, shape = Meter(), Shape((5, 6), None, None, 5)
    whole, flops = meter.counted(shape, WHOLE, lambda: torch.tanh(value @ first) @ second)
    found, (before, behind) = counted_parts(
        meter, shape, 1, lambda: torch.tanh(value @ first), lambda kept: kept @ second
    )
    assert torch.equal(found, whole)
    assert (before, behind) == (2 * 5 * 6 * 9, 2 * 5 * 9 * 4) and before + behind == flops
