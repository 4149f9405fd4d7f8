"""A run over Ray's processes: the digest, the folder and the exit codes are those of any run.

It takes a minute or two, most of it Ray's: `make deploy-test` runs it, `make test` does not.
"""

import os
import signal
import time
from contextlib import suppress

import pytest
import tiny_runs

from seedtune import run_store
from seedtune.errors import SeedtuneError

pytestmark = pytest.mark.skipif(
    "SEEDTUNE_DEPLOYMENT" not in os.environ, reason="make deploy-test sets SEEDTUNE_DEPLOYMENT"
)


@pytest.fixture
def simulated(tiny_model, tiny_table, tmp_path):
    """Runs the command line in a child; returns the process."""
    (tmp_path / "tiny.toml").write_text(tiny_runs.toml(tiny_runs.values(tiny_model, tiny_table)))

    def start(*arguments):
        return tiny_runs.child(list(arguments), tmp_path, tmp_path)

    return start


def test_a_simulated_run_is_stopped_resumed_and_ends_with_the_digest_of_one_process(simulated, tmp_path):
    engine = ("--engine", "flower-sim", "--nodes", "2")
    process = simulated("run", "tiny.toml", "--out", "sim", "--rounds", "40", *engine)
    until = time.monotonic() + 400
    while time.monotonic() < until and process.is_alive() and not _num_rounds(tmp_path / "sim"):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    stopped = _num_rounds(tmp_path / "sim")
    assert process.exitcode == 130 and 0 < stopped < 40, (tmp_path / "stderr").read_text()
    assert (tmp_path / "stderr").read_text().startswith("stopped; every whole round is kept")

    process = simulated("resume", "sim", *engine)
    process.join(400)
    assert process.exitcode == 0, (tmp_path / "stderr").read_text()
    assert (tmp_path / "stderr").read_text() == ""
    process = simulated("run", "tiny.toml", "--out", "twin", "--rounds", "40")
    process.join(400)
    sim, twin = (run_store.summary_of(tmp_path / name) for name in ("sim", "twin"))
    assert sim["state_digest"] == twin["state_digest"] and (sim["engine"], sim["nodes"]) == ("flower-sim", 2)
    assert (sim["nodes_at_the_end"], sim["failed_replies"]) == (2, 0)
    assert sim["bytes_down"] <= twin["bytes_down"]  # nodes may know the round that the server lost when it was stopped
    assert not (tmp_path / "sim" / "nodes").exists()


def _num_rounds(folder):
    """Whole rounds, also while the folder is being written."""
    with suppress(SeedtuneError):
        return len(run_store.trajectory_of(folder).records)
    return 0
