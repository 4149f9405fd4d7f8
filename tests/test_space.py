"""Coordinates, storage and digests of the tuned tensors."""

import json
from hashlib import blake2b

import pytest
import torch

from seedtune.errors import ModelError
from seedtune.space import (
    ALIGNMENT,
    bind,
    bound_weights,
    copied,
    copy_into,
    digest,
    model_digest,
    space_of,
)


def module_of(**shapes) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        module.register_parameter(name, torch.nn.Parameter(torch.arange(count, dtype=torch.float32).reshape(shape)))
    return module


def tied() -> torch.nn.Module:
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(2, 3)
    module.b.weight = module.a.weight
    return module


def test_tensors_stand_by_name_each_at_a_multiple_of_the_alignment():
    module = module_of(c=(3,), b=(2, ALIGNMENT // 2), a=(ALIGNMENT + 1,), d=(), e=(0, 4), f=(1,))
    space = space_of(module, ["f", "e", "d", "c", "b", "a", "a"])
    assert [(spec.name, spec.start // ALIGNMENT) for spec in space.tensors] == [
        ("a", 0), ("b", 2), ("c", 3), ("d", 4), ("e", 5), ("f", 5),
    ]  # fmt: skip
    assert all(spec.start % ALIGNMENT == 0 and spec.dtype == "float32" for spec in space.tensors)
    assert [spec.num_elements for spec in space.tensors] == [ALIGNMENT + 1, ALIGNMENT, 3, 1, 0, 1]
    assert space.num_parameters == 2 * ALIGNMENT + 6
    assert space == space_of(
        module_of(a=(ALIGNMENT + 1,), b=(2, ALIGNMENT // 2), c=(3,), d=(), e=(0, 4), f=(1,)), "abcdef"
    )


def test_a_tied_parameter_is_there_once():
    assert [spec.name for spec in space_of(tied(), ["a.weight", "b.bias"]).tensors] == ["a.weight", "b.bias"]
    with pytest.raises(ModelError) as caught:
        space_of(tied(), ["a.weight", "b.weight"])
    assert str(caught.value) == "'b.weight' is not a parameter of Module, which has 2 parameters"


def test_no_names_are_an_error():
    with pytest.raises(ModelError) as caught:
        space_of(module_of(a=(2,)), [])
    assert str(caught.value) == "no parameter was chosen of Module, which has 1 parameters"


def test_the_fingerprint_is_the_known_one():
    space = space_of(module_of(w=(2, 3), b=(3,)), ["w", "b"])
    rows = [["b", [3], "float32", 0], ["w", [2, 3], "float32", 65536]]
    assert space.fingerprint == blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()
    assert space.fingerprint == "0f6c0d5a0bf0aba24032a95c21ab4701"


def test_the_fingerprint_tells_spaces_apart():
    spaces = [
        space_of(module_of(b=(3,), w=(2, 3)), "wb"),
        space_of(module_of(b=(3,), w=(3, 2)), "wb"),
        space_of(module_of(b=(3,), w=(2, 3)).bfloat16(), "wb"),
        space_of(module_of(b=(3,), w=(2, 3)).half(), "wb"),
        space_of(module_of(b=(3,), v=(2, 3)), "vb"),
        space_of(module_of(b=(3,), w=(2, 3)), "w"),
        space_of(module_of(b=(ALIGNMENT + 1,), w=(2, 3)), "wb"),
    ]
    assert len({space.fingerprint for space in spaces}) == len(spaces)


def test_bound_weights_are_the_modules_own_storage():
    module = module_of(a=(2, 3))
    weights = bound_weights(module, space_of(module, ["a"]))
    weights["a"][1, 2] = 70.0
    assert module.a[1, 2] == 70.0 and not weights["a"].requires_grad


def test_copies_have_storage_of_their_own():
    module = module_of(a=(2, 3), b=(4,))
    weights = bound_weights(module, space_of(module, "ab"))
    copy = copied(weights)
    copy["a"].zero_()
    assert module.a.sum() == 15
    copy_into(weights, copy)
    assert module.a.sum() == 0 and weights["a"].data_ptr() == module.a.data_ptr() != copy["a"].data_ptr()


def test_binding_copies_nothing_and_keeps_ties():
    module = tied()
    parameters = list(module.parameters())
    other = {"a.weight": torch.full((3, 2), 5.0)}
    bind(module, other)
    assert module.b.weight is module.a.weight
    assert module.b.weight.data_ptr() == other["a.weight"].data_ptr()
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))


def reference_digest(weights) -> bytes:
    """As the docstring says, from bytes that are listed one by one."""
    parts = []
    for name in sorted(weights):
        tensor = weights[name]
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        number = torch.int32 if tensor.element_size() == 4 else torch.int16
        values = tensor.flatten().view(number).tolist()
        body = b"".join(value.to_bytes(tensor.element_size(), "little", signed=True) for value in values)
        parts.append(blake2b(head + body, digest_size=16).digest())
    return blake2b(b"".join(parts), digest_size=16).digest()


def some_weights() -> dict[str, torch.Tensor]:
    return {
        "b": torch.tensor([[1.0, -0.0], [float("nan"), 3e-39]]),
        "a": torch.arange(5).bfloat16(),
        "c": torch.tensor(2.0).half(),
        "empty": torch.zeros(0, 3),
    }


def test_the_digest_is_the_known_one():
    assert digest(some_weights()) == reference_digest(some_weights())
    assert digest(some_weights()).hex() == "755074a8170be4648452158d23abd540"
    assert digest({}) == blake2b(digest_size=16).digest()


def test_the_digest_reads_values_not_storage():
    weights, known = some_weights(), digest(some_weights())
    assert digest(dict(reversed(weights.items()))) == known
    assert digest({**weights, "b": weights["b"].t().contiguous().t()}) == known
    assert digest({name: torch.nn.Parameter(tensor) for name, tensor in weights.items()}) == known


def test_every_bit_changes_the_digest():
    weights, seen = some_weights(), {digest(some_weights())}
    count = 0
    for tensor in weights.values():
        flat = tensor.view(-1).view(torch.uint8)
        for byte in range(len(flat)):
            for bit in range(8):
                flat[byte] ^= 1 << bit
                seen.add(digest(weights))
                flat[byte] ^= 1 << bit
                count += 1
    assert len(seen) == count + 1 == 8 * (16 + 10 + 2) + 1


def test_names_shapes_and_dtypes_change_the_digest():
    zeros = torch.zeros(2, 3)
    others = [
        {"a": zeros}, {"b": zeros}, {"a": zeros.view(3, 2)}, {"a": zeros.view(6)}, {"a": zeros.view(2, 3, 1)},
        {"a": torch.zeros(2, 6, dtype=torch.bfloat16)}, {"a": torch.zeros(2, 6, dtype=torch.float16)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)}, {"a": zeros, "b": zeros}, {"a": zeros, "b": torch.zeros(0)}, {},
    ]  # fmt: skip
    assert len({digest(weights) for weights in others}) == len(others)


def test_the_digest_of_a_model_covers_what_is_not_tuned():
    module = tied()
    before, expected = model_digest(module), digest({"a.weight": module.a.weight, "b.bias": module.b.bias})
    assert before == expected
    module.b.bias.data[1] += 1
    assert model_digest(module) != before
