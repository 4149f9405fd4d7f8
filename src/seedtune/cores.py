"""The cores that this process may use, and threads that wait for one another without keeping a core busy.

Set before torch is imported: OpenMP reads its settings once, when its library is loaded. Whoever set them keeps them.
"""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path, PurePosixPath


def prepare_openmp() -> None:
    """Let OpenMP wait passively, on no more threads than this process may use cores.

    A thread that spins while it waits takes the core from the one that it waits for, wherever other processes compute
    too. The number of threads is set only where the process may use fewer cores than the machine has: elsewhere torch
    chooses, by physical cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if (cores := usable_cores()) < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy: by its affinity and its control groups' quota, rounded up.

    root: where /proc and /sys lie.
    """
    quotas = [ceil(quota) for quota in (*_quotas_v2(root), *_quotas_v1(root)) if quota > 0]
    return max(1, min([_affinity(), *quotas]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas_v2(root: Path) -> Iterator[float]:
    """Cores a second of each group from this process's own up: `cpu.max` is "quota period", or "max period"."""
    for folder in _groups(root, "", root / "sys/fs/cgroup"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / max(1, int(period))


def _quotas_v1(root: Path) -> Iterator[float]:
    """The same from `cpu.cfs_quota_us`, -1 where there is none, and `cpu.cfs_period_us`."""
    for mount in ("cpu", "cpu,cpuacct"):
        for folder in _groups(root, "cpu", root / "sys/fs/cgroup" / mount):
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit():
                yield int(quota) / max(1, int(period))


def _groups(root: Path, controller: str, mount: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those above it; within a container the mount itself."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            parts = PurePosixPath(path.lstrip("/"))
            yield from (mount / each for each in (parts, *parts.parents) if ".." not in each.parts)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
