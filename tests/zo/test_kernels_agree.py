"""Every kernel gives the same bits as the torch reference, for every distribution, dtype, offset and length."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seedtune.zo import kernels
from seedtune.zo.kernels import compiled, kernel_for, using
from seedtune.zo.noise import Distribution, accumulate, accumulate_updates, perturb, perturb_both, perturb_rows, values

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
keys = st.integers(0, 2**64 - 1)
starts = st.one_of(st.integers(0, 10_000), st.integers(2**32 - 9_000, 2**32 + 9_000), st.integers(0, 2**62 - 20_000))
counts = st.one_of(st.integers(0, 300), st.integers(3_900, 9_000))
distributions = st.sampled_from(Distribution)
dtypes = st.sampled_from(DTYPES)


@pytest.fixture(params=[4, 8, 16], autouse=True, scope="module")
def width(request):
    """Every vector width that this processor has, whichever would be chosen."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            entries = compiled.entries(request.param)
        except ValueError as error:
            pytest.skip(str(error))
        for name, entry in zip(("_perturb", "_perturb_rows", "_accumulate"), entries, strict=True):
            patch.setattr(compiled, name, entry)
        yield request.param


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def assert_same_bits(first: torch.Tensor, second: torch.Tensor) -> None:
    assert first.dtype == second.dtype
    assert torch.equal(bits(first), bits(second))


def weights_like(count: int, dtype: torch.dtype) -> torch.Tensor:
    return (values(99, 7, count, Distribution.GAUSSIAN) * 0.05).to(dtype)


@settings(max_examples=60, deadline=None)
@given(keys, starts, counts, distributions)
def test_values(key, start, count, distribution):
    fast = values(key, start, count, distribution)
    with using("torch"):
        assert_same_bits(fast, values(key, start, count, distribution))


@settings(max_examples=80, deadline=None)
@given(keys, starts, counts, distributions, dtypes, st.sampled_from([1e-3, -1e-3, 0.0, 1.0, 3e38]))
@example(0, 0, 0, Distribution.GAUSSIAN, torch.float16, 1e-3)
@example(2**64 - 1, 2**62 - 1, 1, Distribution.RADEMACHER, torch.bfloat16, 1e-3)
def test_perturb(key, start, count, distribution, dtype, mu):
    weights = weights_like(count, dtype)
    fast, slow = torch.empty_like(weights), torch.empty_like(weights)
    perturb(fast, weights, key, start, mu, distribution)
    with using("torch"):
        perturb(slow, weights, key, start, mu, distribution)
    assert_same_bits(fast, slow)


@settings(max_examples=40, deadline=None)
@given(keys, starts, counts, distributions, dtypes, st.sampled_from([1e-3, -1e-3, 0.0, 3e38]))
def test_perturb_both(key, start, count, distribution, dtype, mu):
    weights = weights_like(count, dtype)
    above, below, alone = (torch.empty_like(weights) for _ in range(3))
    for kernel in ("compiled", "torch"):
        with using(kernel):
            perturb_both(above, below, weights, key, start, mu, distribution)
        for both, scale in ((above, mu), (below, -mu)):
            perturb(alone, weights, key, start, scale, distribution)
            assert_same_bits(both, alone)


@settings(max_examples=40, deadline=None)
@given(keys, starts, distributions, dtypes, st.lists(st.integers(0, 12), max_size=9), st.integers(0, 400))
def test_perturb_rows(key, start, distribution, dtype, rows, width):
    table = weights_like(13 * width, dtype).view(13, width)
    index = torch.tensor(rows, dtype=torch.int64)
    fast = torch.empty(len(rows), width, dtype=dtype)
    slow, whole = torch.empty_like(fast), torch.empty_like(table)
    perturb_rows(fast, table, index, key, start, 1e-3, distribution)
    with using("torch"):
        perturb_rows(slow, table, index, key, start, 1e-3, distribution)
    perturb(whole, table, key, start, 1e-3, distribution)
    assert_same_bits(fast, slow)
    assert_same_bits(fast, whole[index])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(keys, max_size=4), starts, counts, distributions, dtypes, keys, st.sampled_from([0.0, -1e-4, 0.3, 1e30])
)
def test_accumulate(several, start, count, distribution, dtype, rounding_key, factor):
    factors = [factor / (n + 1) for n in range(len(several))]
    fast = weights_like(count, dtype)
    slow = fast.clone()
    accumulate(fast, start, several, factors, distribution, rounding_key)
    with using("torch"):
        accumulate(slow, start, several, factors, distribution, rounding_key)
    assert_same_bits(fast, slow)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 11), max_size=4), starts, counts, distributions, dtypes)
def test_many_updates_in_one_pass_are_many_passes(sizes, start, count, distribution, dtype):
    several, factors, ends = range(sum(sizes)), [0.01 / (k + 1) for k in range(sum(sizes))], []
    fast = weights_like(count, dtype)
    slow, reference = fast.clone(), fast.clone()
    for u, size in enumerate(sizes):
        part = slice(sum(sizes[:u]), sum(sizes[:u]) + size)
        ends.append(part.stop)
        accumulate(slow, start, several[part], factors[part], distribution, 100 + u)
    rounding_keys = [100 + u for u in range(len(sizes))]
    accumulate_updates(fast, start, several, factors, ends, rounding_keys, distribution)
    with using("torch"):
        accumulate_updates(reference, start, several, factors, ends, rounding_keys, distribution)
    assert_same_bits(fast, slow)
    assert_same_bits(fast, reference)


def test_a_library_that_was_not_built(monkeypatch):
    def fails(name):
        if name == "compiled":
            raise ImportError("no compiler")
        return load(name)

    load = kernels._load
    monkeypatch.setattr(kernels, "_load", fails)
    kernels._fastest_on_cpu.cache_clear()
    with pytest.warns(UserWarning, match="no compiler; until then torch makes the directions"):
        assert kernel_for(torch.empty(1)) is load("torch")
    kernels._fastest_on_cpu.cache_clear()
    assert kernels.found() == ("torch",)
    with using("compiled"), pytest.raises(ValueError, match="kernel 'compiled': no compiler"):
        kernel_for(torch.empty(1))


def test_a_vector_width_that_does_not_exist():
    with pytest.raises(ValueError, match="no vectors of 5 floats"):
        compiled.entries(5)


def test_an_unknown_kernel_is_an_error():
    with pytest.raises(ValueError, match="kernel 'cuda': must be one of auto, compiled, triton, torch"), using("cuda"):
        pass


def test_compiled_refuses_other_devices():
    with (
        using("compiled"),
        pytest.raises(ValueError, match="works on CPU tensors, not on meta: choose 'auto' or 'torch'"),
    ):
        kernel_for(torch.empty(1, device="meta"))


def test_triton_refuses_other_devices(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with (
        using("triton"),
        pytest.raises(ValueError, match="works on CUDA tensors, not on cpu: choose 'auto' or 'torch'"),
    ):
        kernel_for(torch.empty(1))


@pytest.mark.parametrize(
    ("hip", "is_there", "name"), [(None, True, "triton"), (None, False, "torch"), ("7", True, "torch")]
)
def test_what_serves_cuda_tensors(monkeypatch, hip, is_there, name):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(kernels, "import_module", partial(_imported, is_there))
    kernels._load.cache_clear()
    kernels._fastest_elsewhere.cache_clear()
    try:
        assert kernel_for(SimpleNamespace(is_cpu=False, is_cuda=True)) == kernels._MODULES[name]
        assert kernel_for(SimpleNamespace(is_cpu=False, is_cuda=False)) == "torch_ref"
    finally:
        kernels._load.cache_clear()
        kernels._fastest_elsewhere.cache_clear()


def _imported(has_triton: bool, module: str, _package: str) -> str:
    if module == ".triton_cuda" and not has_triton:
        raise ImportError("No module named 'triton'")
    return module.removeprefix(".")


def test_using_ends_with_its_block():
    before = kernel_for(torch.empty(1))
    with using("torch"):
        assert kernel_for(torch.empty(1)) is not before
    assert kernel_for(torch.empty(1)) is before
