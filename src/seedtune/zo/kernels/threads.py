"""Runs a compiled task on the threads that torch already has.

Noise and matrix products alternate thousands of times a second. A second pool of threads would fight torch's own, whose
threads keep spinning for milliseconds after each product: measured on two cores, a pool of Python threads made the
kernels slower than one thread. So a task runs in the OpenMP pool that torch uses, called through `GOMP_parallel`, the
entry that GCC's compiled loops call. It is safe from several Python threads at once: each has its own team.

On cores that other processes use too, an OpenMP thread may wait milliseconds for one that is not running, in torch's
products as in here; hence threads wait passively and are no more than usable cores (`seedtune.cores`).

Where torch brings another thread library (macOS, Windows), Python threads run the task; they cost more to wake, hence
take part only in large ones. This module does not split work: a task gives out its own pieces by an atomic counter.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import torch

SMALLEST_NANOSECONDS = 40_000
SMALLEST_NANOSECONDS_WITHOUT_OPENMP = 1_000_000

_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def entry(address: int) -> Callable[[int], None]:
    """A Python function for compiled `void f(void *task)` at this address; it releases the interpreter's lock."""
    return _Entry(address)


def run(task: Callable[[int], None], argument: int, nanoseconds: float) -> None:
    """Calls `task(argument)` on as many threads as torch uses, once each, and waits for all of them.

    Args:
        task: from `entry`; must give out its pieces of work itself.
        argument: address of its argument; must stay alive during the call.
        nanoseconds: estimate of its work on one thread; small tasks run on this thread alone.
    """
    if nanoseconds < SMALLEST_NANOSECONDS:
        task(argument)
        return
    num_threads, parallel = torch.get_num_threads(), openmp()
    if num_threads > 1 and parallel:
        parallel(task, argument, num_threads, 0)
    elif num_threads > 1 and nanoseconds >= SMALLEST_NANOSECONDS_WITHOUT_OPENMP:
        others = [_python_threads(os.getpid()).submit(task, argument) for _ in range(num_threads - 1)]
        task(argument)
        wait(others)
    else:
        task(argument)


@cache
def openmp() -> Callable | None:
    """`GOMP_parallel(function, argument, num_threads, flags)` of the OpenMP library in use; None if there is none."""
    bundled = [str(path) for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*")]
    for name in (*bundled, "libgomp.so.1"):
        try:
            function = ctypes.CDLL(name, mode=getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes, function.restype = (_Entry, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
        return function
    return None


@cache
def _python_threads(_process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="seedtune-noise")
