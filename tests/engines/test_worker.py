"""The worker behind its socket, in a process that is killed and started again."""

import multiprocessing
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
import small_federation
from small_federation import protocol, recipe, server, site
from test_node import RUN, hello

from seedtune.engines import worker
from seedtune.engines.bench import Benches, Options
from seedtune.engines.frames import NODE, Parcel, receive, send
from seedtune.engines.node_state import NodeState
from seedtune.errors import EngineError, MessageError
from seedtune.fed.hello import decode_standing
from seedtune.fed.messages import decode_reply, encode_order
from seedtune.flower_app.client import through


def serve(path: Path, folder: Path) -> None:
    worker.Benches = lambda: Benches(small_federation.without_a_model)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, worker._leave)
    worker.run(path, folder, Options(), lambda note: None)


@pytest.fixture
def started(tmp_path):
    """Starts a worker, and kills what is left in the end."""
    context, made = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload(["tiny_runs", "seedtune.cli", "seedtune.inspection", "seedtune.terminal"])

    def start():
        made.append(context.Process(target=serve, args=(tmp_path / "s", tmp_path / "state")))
        made[-1].start()
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.join()


def asked(path, clients, messages, patience=300.0):
    return through(path, Parcel(RUN.hex(), clients, messages).plain(), patience)


def test_a_worker_that_is_killed_and_started_again_answers_as_before(started, tmp_path):
    process, settings, path = started(), recipe(), tmp_path / "s"
    (standing,) = asked(path, (NODE,), (hello(settings),))["messages"]
    assert decode_standing(standing).num_examples == dict.fromkeys(range(4), 12)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    order = encode_order(protocol(settings).order(server(site(settings)), 2))
    first = asked(path, (2,), (order,))
    assert decode_reply(first["messages"][0]).client == 2
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    found = []
    waiting = threading.Thread(target=lambda: found.append(asked(path, (2,), (order,))))
    waiting.start()
    again = started()
    waiting.join(300)
    assert found == [first]
    again.terminate()
    again.join(10)
    assert again.exitcode == 0 and not path.exists()


def test_nonsense_on_the_socket_stops_nobody_else(started, tmp_path):
    started()
    path, settings = tmp_path / "s", recipe()
    assert asked(path, (NODE,), (hello(settings),))["errors"] == [""]
    for nonsense in (b"\0" * 7 + b"\1" + b"\xc1", b"\xff" * 8, b"\0" * 7 + b"\x05abc"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    assert asked(path, (NODE,), (hello(settings),))["errors"] == [""]


def test_without_a_worker_the_client_says_so(tmp_path):
    now = [0.0]
    with pytest.raises(EngineError, match=r"no worker answers on .*nowhere \(No such file or directory\): start it"):
        through(tmp_path / "nowhere", {}, 5.0, lambda: now[0], lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert now[0] >= 5.0


def test_frames_pass_through_a_socket_and_are_checked():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, {"messages": [b"x" * 10**5]})
        assert receive(theirs) == {"messages": [b"x" * 10**5]}
        ours.sendall((2**40).to_bytes(8, "big"))
        with pytest.raises(MessageError, match="at most"):
            receive(theirs)
        ours.sendall(b"\0" * 7 + b"\1" + b"\7")
        with pytest.raises(MessageError, match="a frame holds a map"):
            receive(theirs)
        ours.sendall(b"\0" * 7 + b"\5ab")
        ours.close()
        with pytest.raises(ConnectionError, match="closed within a frame"):
            receive(theirs)


def test_what_a_worker_cannot_use_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--socket", str(tmp_path / ("x" * 200)), "--state", str(tmp_path / "a")], "the socket's path"),
        (["--socket", str(tmp_path / "s"), "--state", str(tmp_path / "file" / "a")], "Not a directory"),
        (
            ["--socket", str(tmp_path / "s"), "--state", str(tmp_path / "a"), "--clients", "x"],
            "clients 'x': expected numbers below a",
        ),
        (["--socket", str(tmp_path / "s"), "--state", str(tmp_path / "a"), "--device", "abacus"], "device"),
    ):
        handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
        mask = os.umask(0o022)
        with pytest.raises(SystemExit) as ended:
            worker.main(arguments)
        os.umask(mask)
        for name, handler in handlers.items():
            signal.signal(name, handler)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and message in error and error.count("\n") == 1


def test_a_state_has_one_worker(started, tmp_path):
    started()
    until = time.monotonic() + 300
    while not (tmp_path / "s").exists() and time.monotonic() < until:
        time.sleep(0.02)
    NodeState(tmp_path / "state")
    mask = os.umask(0o022)
    with pytest.raises(EngineError, match="is in use by another worker"):
        worker.run(tmp_path / "other", tmp_path / "state", Options(), lambda note: None)
    with pytest.raises(EngineError, match="another one listens on"):
        worker.run(tmp_path / "s", tmp_path / "elsewhere", Options(), lambda note: None)
    os.umask(mask)
