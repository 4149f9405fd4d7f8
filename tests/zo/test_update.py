"""`apply` equals a slow reference, repeats to the bit however it is called, converges, and skips what was skipped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.space import Space, TensorSpec, copied, digest
from seedtune.zo.estimators import one_by_one, two_point
from seedtune.zo.kernels import threads, using
from seedtune.zo.noise import Distribution, derive_key, perturb, values
from seedtune.zo.update import Update, apply

GAUSSIAN, RADEMACHER = Distribution.GAUSSIAN, Distribution.RADEMACHER
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN = float("nan")


def space_like(weights) -> Space:
    """Alignment does not matter to `apply`: starts that are no multiples of anything."""
    starts = {name: 1_000 * i + i for i, name in enumerate(sorted(weights))}
    return Space(
        tuple(TensorSpec(name, tuple(t.shape), str(t.dtype)[6:], starts[name]) for name, t in sorted(weights.items()))
    )


def some_weights(dtype=torch.float32) -> dict[str, torch.Tensor]:
    shapes = {"b": (7, 31), "a": (130,), "d": (), "c": (0, 3)}
    drawn = {
        name: (0.1 * values(n, 0, torch.Size(shape).numel(), GAUSSIAN)).to(dtype).view(shape)
        for n, (name, shape) in enumerate(shapes.items())
    }
    return {**drawn, "e": torch.linspace(-1, 1, 300).to(torch.float32)}


def update(*coefficients: float, first_key=11, rounding_key=5) -> Update:
    return Update(
        tuple(range(first_key, first_key + len(coefficients))), np.array(coefficients, np.float32), rounding_key
    )


def applied(weights, updates, distribution=GAUSSIAN) -> dict[str, torch.Tensor]:
    moved = copied(weights)
    apply(space_like(weights), moved, updates, distribution)
    return moved


def assert_bits(found, expected) -> None:
    assert found.keys() == expected.keys()
    assert digest(found) == digest(expected)


@pytest.mark.parametrize("distribution", Distribution)
def test_float32_is_the_plain_sum_in_the_order_of_keys(distribution):
    weights, updates = some_weights(), [update(1e-3, -0.25, 0.0, 2e-5), update(0.7, first_key=2**64 - 1)]
    single, double = copied(weights), {name: tensor.double() for name, tensor in weights.items()}
    for one in updates:
        for key, coefficient in zip(one.keys, torch.from_numpy(one.coefficients), strict=True):
            for spec in space_like(weights).tensors:
                z = values(key, spec.start, spec.num_elements, distribution).view(spec.shape)
                single[spec.name] = single[spec.name] + coefficient * z
                double[spec.name] += coefficient.double() * z.double()
    moved = applied(weights, updates, distribution)
    assert_bits(moved, single)
    for name, tensor in moved.items():
        torch.testing.assert_close(tensor.double(), double[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_sixteen_bits_hold_a_neighbour_of_the_sum(dtype):
    weights, one = some_weights(dtype), update(1e-3, -0.02, 4e-5)
    sums = applied({name: tensor.float() for name, tensor in weights.items()}, [one])
    moved = applied(weights, [one])
    assert_bits({"e": moved["e"]}, {"e": sums["e"]})  # a float32 tensor among them is not rounded
    for name, exact in sums.items():
        nearest = exact.to(dtype)
        below = torch.where(nearest.float() <= exact, nearest, torch.nextafter(nearest, torch.tensor(-9, dtype=dtype)))
        above = torch.where(nearest.float() >= exact, nearest, torch.nextafter(nearest, torch.tensor(9, dtype=dtype)))
        assert name == "e" or ((moved[name] == below) | (moved[name] == above)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_move_in_place_and_others_stay(dtype):
    weights = some_weights(dtype)
    space, known = Space(space_like(weights).tensors[:2]), copied(weights)
    places = {name: tensor.data_ptr() for name, tensor in weights.items()}
    apply(space, weights, [update(0.3)], GAUSSIAN)
    assert {name: tensor.data_ptr() for name, tensor in weights.items()} == places
    changed = {name for name in weights if not torch.equal(weights[name], known[name])}
    assert changed == {spec.name for spec in space.tensors}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", [0b00101, 0b11010, 0, -1])
def test_updates_of_parts_of_the_tensors_are_one_of_all(dtype, mask):
    """Each part is rounded once, by the key that they share; bit i of a mask is the i-th tensor by name."""
    weights, one = some_weights(dtype), update(1e-3, -0.25)
    first, second = replace(one, tensors=mask), replace(one, tensors=~mask)
    assert_bits(applied(weights, [first, second]), applied(weights, [one]))
    moved = applied(weights, [first])
    changed = {name for name in weights if not torch.equal(moved[name], weights[name])}
    assert changed == {name for i, name in enumerate(sorted(weights)) if mask >> i & 1} - {"c"}  # it has no elements


@pytest.mark.parametrize("distribution", Distribution)
def test_an_update_goes_where_the_evaluation_was(distribution):
    """theta moved by mu is, to the bit, the theta + mu z at which the loss was measured."""
    weights = some_weights()
    moved = applied(weights, [update(-1e-3)], distribution)
    for spec in space_like(weights).tensors:
        seen = torch.empty_like(weights[spec.name])
        perturb(seen, weights[spec.name], 11, spec.start, -1e-3, distribution)
        assert torch.equal(seen, moved[spec.name])


coefficients = st.lists(st.sampled_from([0.0, 1e-3, -0.05, 3.0, NAN]), max_size=4)
lists_of_updates = st.lists(
    st.builds(
        lambda some, first, rounding: update(*some, first_key=first, rounding_key=rounding),
        coefficients, st.integers(0, 2**64 - 5), st.integers(0, 2**64 - 1),
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(lists_of_updates, st.sampled_from(DTYPES), st.sampled_from(Distribution), st.data())
def test_neither_calls_nor_kernels_nor_threads_change_a_bit(updates, dtype, distribution, data):
    weights, cut = some_weights(dtype), data.draw(st.integers(0, len(updates)))
    expected = applied(weights, updates, distribution)
    assert_bits(applied(weights, iter(updates), distribution), expected)
    assert_bits(applied(applied(weights, updates[:cut], distribution), updates[cut:], distribution), expected)
    before = torch.get_num_threads()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threads, "SMALLEST_NANOSECONDS", 0)
            for num_threads in (1, 2):
                torch.set_num_threads(num_threads)
                for kernel in ("torch", "compiled"):
                    with using(kernel):
                        assert_bits(applied(weights, updates, distribution), expected)
    finally:
        torch.set_num_threads(before)


def test_many_keys_at_once_equal_one_at_a_time_in_float32():
    weights, one = some_weights(), update(0.1, -3e-4, 0.02)
    singles = [Update((key,), one.coefficients[k : k + 1], 9) for k, key in enumerate(one.keys)]
    assert_bits(applied(weights, singles), applied(weights, [one]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_skipped_step_is_as_if_it_had_not_been(dtype):
    weights = some_weights(dtype)
    skipped = applied(weights, [update(0.1, NAN, -0.2, NAN)])
    assert_bits(skipped, applied(weights, [Update((11, 13), np.array([0.1, -0.2], np.float32), 5)]))
    for nothing in ([], [update()], [update(NAN)], [update(NAN, NAN), update(NAN)]):
        assert_bits(applied(weights, nothing), weights)


@pytest.mark.parametrize(("dtype", "spacing"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)])
def test_steps_far_below_the_spacing_of_numbers_arrive_on_average(dtype, spacing):
    """Mean move along z of 2^17 weights within 5 standard errors, which are below 4 % of the move; nearest rounding
    would move none."""
    num, step = 2**17, spacing / 100
    weights = {"w": torch.full((num,), 1.25, dtype=dtype)}
    moved = applied(weights, [update(step)], RADEMACHER)
    along = (moved["w"].double() - 1.25) * values(11, 0, num, RADEMACHER)
    assert (torch.tensor(1.25) + step).to(dtype) == 1.25
    assert set(along.unique().tolist()) == {0.0, spacing}
    standard_error = spacing * (0.01 * 0.99 / num) ** 0.5
    assert standard_error < 0.04 * step
    assert abs(along.mean().item() - step) < 5 * standard_error


def test_rounding_is_drawn_anew_with_its_key():
    weights = {"w": torch.full((5_000,), 1.25, dtype=torch.bfloat16)}
    first, again, other = (applied(weights, [update(1e-3, rounding_key=key)]) for key in (1, 1, 2))
    assert_bits(again, first)
    assert digest(other) != digest(first)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("distribution", Distribution)
def test_steps_of_an_estimator_descend_a_quadratic(distribution, dtype, close):
    target = {"a": torch.linspace(-1, 1, 6), "b": torch.linspace(1, 2, 6).view(2, 3)}
    weights = {name: torch.zeros_like(tensor, dtype=dtype) for name, tensor in target.items()}
    space = space_like(weights)

    def loss_at(point) -> float:
        at = {name: tensor.float() for name, tensor in weights.items()}
        if point is not None:
            for spec in space.tensors:
                z = values(point.key, spec.start, spec.num_elements, distribution)
                at[spec.name] = at[spec.name] + point.mu * z.view(spec.shape)
        return sum((at[name] - target[name]).double().square().sum().item() for name in target)

    start = loss_at(None)
    for step in range(400):
        key = derive_key(1, "test", step=step)
        probe = two_point(one_by_one(loss_at), [key], 1e-3, distribution)
        apply(
            space, weights, [Update((key,), -0.03 * probe.scalars, derive_key(1, "rounding", step=step))], distribution
        )
    assert loss_at(None) < close * start


def test_one_coefficient_a_key():
    for keys, count in (((1, 2), 1), ((1,), 2), ((), 1)):
        with pytest.raises(ValueError) as caught:
            applied(some_weights(), [Update(keys, np.zeros(count, np.float32), 0)])
        assert str(caught.value) == f"update of {len(keys)} keys has {count} coefficients: one a key"


def test_weights_must_be_contiguous():
    weights = {"w": torch.zeros(3, 2).t()}
    with pytest.raises(ValueError, match=r"weights \[2, 3\] has strides \(1, 2\): must be contiguous"):
        apply(space_like(weights), weights, [update(1.0)], GAUSSIAN)
