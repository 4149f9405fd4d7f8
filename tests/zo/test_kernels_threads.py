"""Threads change speed, never bits: any count, any pool, several callers at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from seedtune.zo.kernels import threads
from seedtune.zo.noise import Distribution, accumulate, perturb, perturb_rows, values

NUM = 60_000


@pytest.fixture(autouse=True)
def every_task_is_large(monkeypatch):
    monkeypatch.setattr(threads, "SMALLEST_NANOSECONDS", 0)
    monkeypatch.setattr(threads, "SMALLEST_NANOSECONDS_WITHOUT_OPENMP", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["openmp", "python"])
def pool(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(threads, "openmp", lambda: None)
    elif threads.openmp() is None:
        pytest.skip("torch's threads are not GCC's OpenMP here")


def everything(key: int) -> list[torch.Tensor]:
    results = []
    for distribution in Distribution:
        for dtype in (torch.float32, torch.bfloat16):
            weights = (values(key, 0, NUM, Distribution.GAUSSIAN) * 0.1).to(dtype)
            out, rows = torch.empty_like(weights), torch.empty(300, 20, dtype=dtype)
            perturb(out, weights, key, 4_000, 1e-3, distribution)
            index = torch.arange(300) * 7
            perturb_rows(rows, weights.view(-1, 20), index, key, 4_000, 1e-3, distribution)
            assert torch.equal(rows, out.view(-1, 20)[index])
            accumulate(weights, 4_000, [key, 3], [1e-3, 0.1], distribution, key)
            results += [out, rows, weights]
    return results


def assert_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("num_threads", [2, 3, 5])
def test_the_number_of_threads_changes_nothing(num_threads):
    torch.set_num_threads(1)
    alone = everything(5)
    torch.set_num_threads(num_threads)
    assert_equal(everything(5), alone)
    assert torch.get_num_threads() == num_threads


@pytest.mark.usefixtures("pool")
def test_several_callers_at_once():
    torch.set_num_threads(2)
    expected = [everything(key) for key in range(3)]
    with ThreadPoolExecutor(3) as callers:
        for key, got in enumerate(callers.map(everything, range(3))):
            assert_equal(got, expected[key])
