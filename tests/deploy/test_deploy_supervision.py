"""What a server and a node do when something ends, with dummies in place of Flower: start it again, go on, give up."""

import json
import sys

import pytest
import whole_files

pytest.importorskip("cryptography")

from seedtune.deploy import keys, node, places, roll, server
from seedtune.deploy.news import Standing, Told
from seedtune.deploy.processes import Command
from seedtune.errors import DeployError, EngineError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SUPEREXEC = """
import os, subprocess, sys, time
folder = sys.argv[1]
while True:  # starts whatever app is asked for, as Flower's does
    if os.path.exists(folder + "/asked"):
        os.remove(folder + "/asked")
        subprocess.Popen([sys.executable, "-c", sys.argv[2], folder])
    time.sleep(0.02)
"""
SUMMARY = whole_files.summary(rounds=1)
SUCCEEDS = f"""
import sys, time
with open(sys.argv[1] + "/service/logs/app.log", "a") as file:
    file.write("round 1, one reply\\n")
time.sleep(0.2)
open(sys.argv[1] + "/summary.json", "w").write({json.dumps(SUMMARY)!r})
time.sleep(0.2)
open(sys.argv[1] + "/ended", "w")
"""
FAILS = """
import sys, time
time.sleep(0.2)
with open(sys.argv[1] + "/service/logs/app.log", "a") as file:
    file.write("error: no such model\\n")
"""


class Asked:
    """In place of the SuperLink's Control interface: notes what was asked, and lets the dummy start an app."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def is_up(self):
        return True

    def register(self, path):
        self.calls.append(("register", path.stem))
        return "7"

    def unregister(self, number):
        self.calls.append(("unregister", number))

    def unfinished(self):
        self.calls.append(("unfinished",))
        return ["old"]

    def stop(self, run):
        self.calls.append(("stop", run))

    def start(self, bundle, config):
        self.calls.append(("start", config["folder"]))
        (self.folder / "asked").touch()
        return "run"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serves a run whose app is a program; gives the summary, and what was said and asked."""
    asked, said = Asked(tmp_path), []
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(server, "TICK", 0.02)
    monkeypatch.setattr(server, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(server, "Control", lambda *_: asked)

    def serve(app, **options):
        made = server.Server(tmp_path, tmp_path, port=places.free_port(), **options)

        def commands(made):
            programs = {"superlink": ("import time; time.sleep(60)",), "superexec": (SUPEREXEC, str(tmp_path), app)}
            return [
                Command(name, (sys.executable, "-c", *arguments), {}, made.place.log(name))
                for name, arguments in programs.items()
            ]

        monkeypatch.setattr(server, "commands", commands)
        return server.serve(made, said.append)

    return serve, asked.calls, said


def test_a_server_ends_with_the_summary_once_its_app_has_ended(served, tmp_path):
    serve, asked, said = served
    assert serve(SUCCEEDS) == SUMMARY and (tmp_path / "ended").exists()
    assert asked == [("start", str(tmp_path))]
    assert said[1:] == ["run run of the app started", "round 1, one reply"]
    assert serve(FAILS) == SUMMARY and len(asked) == 1  # at once, with nothing started


def test_a_server_whose_app_gets_nowhere_gives_up_and_says_why(served):
    serve, asked, said = served
    reason = r"the app ended 3 times without one more round; the last time: .*app.log says: error: no such model"
    with pytest.raises(EngineError, match=reason):
        serve(FAILS)
    assert asked.count(("start", asked[0][1])) == 3 and asked.count(("stop", "old")) == 2  # none before the first
    assert sum("starting it again" in line for line in said) == 2


def test_one_server_a_run_and_none_without_an_app(served, tmp_path):
    serve, _, _ = served
    made = server.Server(tmp_path, tmp_path)
    with places.opened(made.place), pytest.raises(DeployError, match="in use by another 'seedtune deploy'"):
        serve(SUCCEEDS)
    with pytest.raises(DeployError, match="holds no Flower app"):
        server.serve(server.Server(tmp_path, tmp_path / "none"), print)


def test_a_node_starts_again_what_ends_and_says_where_it_stands(tmp_path, monkeypatch):
    made, said = node.Node("localhost:1", tmp_path / "n", port=places.free_port()), []
    programs = {"worker": "raise SystemExit('out of luck')", "supernode": "import time; time.sleep(60)"}
    monkeypatch.setattr(node, "TICK", 0.02)
    monkeypatch.setattr("seedtune.deploy.processes.Child.wait", 0.01)
    monkeypatch.setattr(node, "commands", lambda made: [
        Command(name, (sys.executable, "-c", program), {}, made.place.log(name)) for name, program in programs.items()
    ])  # fmt: skip

    def until():
        if not made.status.parent.exists():
            made.status.parent.mkdir()
            made.status.write_text(json.dumps({"run": "abc", "round": 3, "digest": "d1"}))
        return any("worker ended" in line for line in said) and any("state digest" in line for line in said)

    node.supervise(made, said.append, until)
    assert any("worker ended (exit code 1; " in line and "says: out of luck" in line for line in said)
    assert "run abc: in round 4, which begins at state digest d1" in said


def test_a_node_that_is_not_let_in_yet_waits_in_words():
    refused = "supernode ended (exit code 1; /logs/supernode.log says: [code: 2004] Failed to activate.): starting it"
    assert node._explained(refused) == (
        "waiting for the server to let this node in: it does not know this node's public key yet, or, for up to a "
        "minute after this node was killed, takes it for connected; asking again until it does"
    )
    assert node._explained("worker ended (SIGKILL)") == "worker ended (SIGKILL)"


def test_keys_are_registered_as_they_come_and_unregistered_as_they_go(tmp_path, monkeypatch):
    asked, said, folder = Asked(tmp_path), [], tmp_path / "nodes"
    folder.mkdir()
    monkeypatch.setattr(roll, "EVERY", 0.0)

    def looked():
        made = roll.Roll(folder, tmp_path / "nodes.json", asked, said.append)  # as after a restart
        made.make(made.changes())
        made.make(made.changes())
        calls, asked.calls = asked.calls, []
        return calls

    assert looked() == []
    for name in ("a", "b"):
        keys.make_node_key(folder / f"{name}.key")
    (folder / "bad.pub").write_text("nonsense")
    assert looked() == [("register", "a"), ("register", "b")] and "bad.pub: is no public key" in said[0]
    assert len(said) == 3 and looked() == []
    kept = (folder / "a.pub").read_text()
    (folder / "a.pub").unlink()
    assert looked() == [("unregister", "7")] and "node a may take part no longer" in said and looked() == []
    (folder / "again.pub").write_text(kept)
    assert looked() == [] and "again.pub: was taken away once: its node needs a new key" in said[-1]
    asked.register = lambda path: None  # as where a crash came between registering a key and noting it
    keys.make_node_key(folder / "c.key")
    looked()
    (folder / "c.pub").unlink()
    assert looked() == [] and said[-1] == "WARNING: node c cannot be taken out: its number is lost"
    assert not roll.Roll(None, tmp_path / "none.json", asked, said.append).changes()


def test_the_app_is_heard_once_and_in_whole_lines(tmp_path):
    told = Told(tmp_path / "log")
    assert told.news() == []
    told.log.write_text("round 1\nrou")
    assert (told.news(), told.news()) == (["round 1"], [])
    told.log.write_text(told.log.read_text() + "nd 2\n")
    assert told.news() == ["round 2"]


def test_where_a_node_stands_is_told_when_it_changes(tmp_path):
    standing = Standing(tmp_path / "status.json")
    assert standing.news() is None
    standing.path.write_text("{")
    assert standing.news() is None
    told = {
        '{"run": "a", "refused": ""}': "run a: takes part",
        '{"run": "a", "refused": "bases differ"}': "run a: refused, since bases differ",
        '{"run": "a", "round": 1, "digest": "d"}': "run a: in round 2, which begins at state digest d",
        '{"run": "a", "round": 2, "digest": "e", "finished": true}': "run a: ended after 2 rounds, state digest e",
    }
    for text, words in told.items():
        standing.path.write_text(text)
        assert (standing.news(), standing.news()) == (words, None)
