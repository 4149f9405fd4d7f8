"""Threads follow the cores that a process may use, and wait without keeping one busy."""

import os
import subprocess
import sys

import pytest

from seedtune import cores

PREPARED = "import os, sys, seedtune; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"


@pytest.fixture(autouse=True)
def eight(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


def written(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(folder, quota, period):
    group = f"sys/fs/cgroup/{folder}/cpu.cfs_"
    return V1 | {f"{group}quota_us": str(quota), f"{group}period_us": str(period)}


V2, V1 = {"proc/self/cgroup": "0::/a/b\n"}, {"proc/self/cgroup": "3:memory:/x\n4:cpu,cpuacct:/a\n0::/\n"}
QUOTAS = {
    "none": ({}, 8),
    "no limit": (V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 8),
    "two cores": (V2 | {"sys/fs/cgroup/a/b/cpu.max": "200000 100000"}, 2),
    "of the group above": (V2 | {"sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 1"}, 3),
    "in a container": (V2 | {"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
    "a part of a core": (V2 | {"sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
    "damaged": (V2 | {"sys/fs/cgroup/cpu.max": "x y z"}, 8),
    "v1": (v1("cpu/a", 400_000, 100_000), 4),
    "v1 without": (v1("cpu/a", -1, 9), 8),
    "v1, both mounted": (v1("cpu,cpuacct", 50, 10), 5),
}  # fmt: skip


@pytest.mark.parametrize("files, expected", QUOTAS.values(), ids=QUOTAS)
def test_quotas_of_control_groups_count(tmp_path, files, expected):
    assert cores.usable_cores(written(tmp_path, files)) == expected


def test_affinity_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6})
    assert cores.usable_cores(tmp_path) == 3


@pytest.mark.parametrize("usable, threads", [(8, None), (3, "3")])
def test_the_number_of_threads_is_set_where_the_process_may_use_less_than_the_machine(monkeypatch, usable, threads):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    cores.prepare_openmp()
    assert os.environ.get("OMP_NUM_THREADS") == threads and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setattr(os, "environ", given := {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"})
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    cores.prepare_openmp()
    assert given == {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"}


def test_it_is_set_before_torch_is_imported():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", PREPARED], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.stdout, done.stderr) == ("PASSIVE\n", "")


def test_a_new_run_records_usable_cores_and_a_recorded_number_stays(monkeypatch):
    from seedtune import experiment
    from seedtune.recipe_text import build

    monkeypatch.setattr(experiment, "usable_cores", lambda: 2)
    monkeypatch.setattr(experiment.torch, "get_num_threads", lambda: 6)
    assert experiment.resolved(build({})).run.num_threads == 2
    assert experiment.resolved(build({"run": {"num_threads": 5}})).run.num_threads == 5
