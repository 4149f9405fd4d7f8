"""Supervision of processes, with dummies in place of Flower's: started again when they die, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from seedtune.deploy import places, processes
from seedtune.deploy.flower import Place
from seedtune.deploy.processes import Child, Command, ended_together, num_running, stop_all, told_by
from seedtune.errors import DeployError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SLEEPS = "import time; time.sleep(60)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, '-c', {SLEEPS!r}])
print('ready', flush=True)
time.sleep(60)
"""


def child(folder, program, name="dummy", **environment):
    return Child(Command(name, (sys.executable, "-c", program), environment, folder / f"{name}.log"))


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_ready(one):
    return one.command.log.exists() and b"ready" in one.command.log.read_bytes()


def test_a_process_gets_its_environment_and_its_log(tmp_path):
    one = child(tmp_path, "import os; print(os.environ['COLOUR'])", COLOUR="green")
    one.start()
    wait_for(lambda: not one.is_running)
    assert one.ending() == f"exit code 0; {one.command.log} says: green"


def test_stopping_ends_the_whole_group_also_where_it_will_not(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.2)
    children = [child(tmp_path, PARENT, "parent"), child(tmp_path, STUBBORN, "stubborn")]
    for one in children:
        one.start()
    wait_for(lambda: all(is_ready(one) for one in children))
    assert [num_running(one) for one in children] == [3, 2]  # each with the one that ties it
    stop_all(children)
    wait_for(lambda: not any(num_running(one) for one in children), 1)
    assert children[1].process.returncode == -signal.SIGKILL


def test_what_dies_is_started_again_after_a_wait_that_doubles(tmp_path):
    """And says so once, though it dies four times of the same."""
    said, one = [], child(tmp_path, "raise SystemExit('no luck')")
    one.wait = 0.05
    one.start()
    for _ in range(3):
        wait_for(lambda: not one.is_running)
        wait_for(lambda: one.revive(said.append))
    assert one.wait == 0.4
    (line,) = said
    assert "dummy ended (exit code 1; " in line and line.endswith("says: no luck): starting it again until it stays")
    stop_all([one])


def test_what_stays_again_is_said_once_and_its_next_end_too(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SETTLED", 0.0)
    said, one = [], child(tmp_path, SLEEPS)
    one.wait = 0.01
    one.start()
    for _ in range(2):
        one.process.kill()
        wait_for(lambda: one.revive(said.append))
        wait_for(lambda: one.revive(said.append) or said[-1] == "dummy runs again")
        one.revive(said.append)
    assert ["ended" in line for line in said] == [True, False, True, False] and said[1] == "dummy runs again"
    stop_all([one])


def test_what_dies_takes_what_it_started_along_before_it_is_started_again(tmp_path):
    one = child(tmp_path, PARENT)
    one.start()
    wait_for(lambda: is_ready(one))
    one.process.kill()
    one.process.wait()
    assert num_running(one)  # what it started lives on
    assert not one.revive(lambda line: None)
    wait_for(lambda: not num_running(one), 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_ends_them_all_also_in_the_background(tmp_path, number):
    one, before = child(tmp_path, SLEEPS), signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does with &
    try:
        with pytest.raises(KeyboardInterrupt), ended_together([one]):
            one.start()
            os.kill(os.getpid(), number)
            time.sleep(5)
        assert not num_running(one)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == (signal.SIG_DFL, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_ends_them_all(tmp_path):
    one = child(tmp_path, SLEEPS)
    with pytest.raises(ZeroDivisionError), ended_together([one]):
        one.start()
        raise ZeroDivisionError
    assert not num_running(one)


def test_all_of_them_end_where_the_supervisor_is_killed(tmp_path):
    program = f"""
import sys, time
from pathlib import Path
from seedtune.deploy.processes import Child, Command
one = Child(Command('dummy', (sys.executable, '-c', {PARENT!r}), {{}}, Path({str(tmp_path / "log")!r})))
one.start()
print(one.process.pid, flush=True)
time.sleep(60)
"""
    one = child(tmp_path, PARENT, "log")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as supervisor:
        one.process = SimpleNamespace(pid=int(supervisor.stdout.readline()))
        wait_for(lambda: num_running(one) == 3)
        supervisor.kill()
    wait_for(lambda: not num_running(one))


def test_a_process_ends_as_its_command_does(tmp_path):
    for program, code in (("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)):
        one = child(tmp_path, program)
        one.start()
        assert one.process.wait() == code


def test_a_log_tells_its_last_error_or_its_last_line(tmp_path):
    log = tmp_path / "log"
    assert told_by(log) == f"{log} says nothing"
    log.write_text("\x1b[91mERROR \x1b[0m: Exit Code: 305\nFailed.\n[code: 2004] Failed to activate.\n\nINFO: down\n")
    assert told_by(log) == f"{log} says: [code: 2004] Failed to activate."
    start = log.stat().st_size
    log.write_text(log.read_text() + "INFO: up\n")
    assert told_by(log, start) == f"{log} says: INFO: up"
    log.write_text("  File\nseedtune.errors.ModelError: no such model\nINFO: down\n")
    assert told_by(log) == f"{log} says: seedtune.errors.ModelError: no such model"


def test_a_program_that_is_not_there_is_said(tmp_path):
    one = Child(Command("dummy", (str(tmp_path / "none"),), {}, tmp_path / "log"))
    one.start()
    wait_for(lambda: not one.is_running)
    assert "cannot be started: No such file" in one.ending()
    with pytest.raises(DeployError, match="dummy: cannot be started"):
        Child(Command("dummy", ("true",), {}, tmp_path / "none" / "log")).start()


def test_one_supervisor_a_folder(tmp_path):
    place = Place(tmp_path / "node")
    with places.opened(place):
        assert place.secret.stat().st_mode & 0o777 == 0o600 and len(place.secret.read_bytes()) == 32
        with pytest.raises(DeployError, match="is in use by another 'seedtune deploy'"), places.opened(place):
            pass
    secret = place.secret.read_bytes()
    with places.opened(place):
        assert place.secret.read_bytes() == secret
    place.folder.chmod(0o755)
    with pytest.raises(DeployError, match="has mode 0755"), places.opened(place):
        pass
