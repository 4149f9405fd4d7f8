"""`seedtune deploy ...` as a user meets it: what it prints instead of starting, and what it refuses to start."""

import shlex
from pathlib import Path

import pytest

pytest.importorskip("cryptography")
pytest.importorskip("flwr")

import tiny_runs

from seedtune import run_store
from seedtune.deploy import begin, commands, flower, keys, nginx, places
from seedtune.errors import ConfigError, DeployError


@pytest.fixture
def made(tmp_path):
    """Keys in `keys`, one node's in `site-0.key`."""
    keys.make_server_keys(tmp_path / "keys", ["fed.example.org"])
    keys.make_node_key(tmp_path / "site-0.key")
    return tmp_path


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "pyproject.toml").write_text("")
    monkeypatch.setattr(commands, "_bundle", lambda: tmp_path / "bundle")


def refused(result, message):
    assert (result.code, result.out) == (2, "")
    assert message in result.err and result.err.count("\n") == 1


def processes_of(text):
    """The printed command lines by the name of the process, as a shell would split them."""
    blocks = text.split("# process ")[1:]
    return {block.split("\n")[0]: shlex.split(block.split("\n")[1]) for block in blocks}


def option(arguments, name):
    return arguments[arguments.index(name) + 1]


def test_keys_are_made_by_command(seedtune, tmp_path):
    result = seedtune("deploy", "keys", "keys", "--host", "fed.example.org", "--host", "192.0.2.7")
    assert (result.code, result.err) == (0, "") and "put each node's public key into keys/nodes" in result.out
    assert keys.hosts_of(tmp_path / "keys") == ["fed.example.org", "192.0.2.7"]
    assert seedtune("deploy", "node-key", "site-0.key").out.splitlines()[0] == "site-0.key: made; it stays here"
    keys.check_node_key(tmp_path / "site-0.key")
    refused(seedtune("deploy", "keys", "keys"), "keys/server.crt: is there already and is never overwritten")


def test_a_servers_processes_are_printed_and_listen_on_loopback_alone(seedtune, made, bundle):
    result = seedtune("deploy", "server", "quickstart", "--out", "run", "--keys", "keys", "--port", 8123, "--print")
    assert (result.code, result.err) == (0, "")
    printed = processes_of(result.out)
    assert list(printed) == ["superlink", "superexec"]
    link = printed["superlink"]
    assert (option(link, "--host"), option(link, "--port")) == ("127.0.0.1", "8123")
    assert "--enable-supernode-auth" in link and "--insecure" not in link
    assert option(link, "--isolation") == "process"
    assert option(link, "--superexec-auth-secret-file") == str(made / "run/service/superexec.secret")
    assert option(printed["superexec"], "--root-certificates") == str(made / "keys/ca.crt")
    assert f"export FLWR_HOME={made}/run/service/flwr\n" in result.out and 'address = "127.0.0.1:8123"' in result.out
    assert f"supernode register {made}/keys/nodes/NAME.pub seedtune" in result.out
    assert not (made / "run").exists()


def test_a_nodes_processes_are_printed(seedtune, made):
    flags = ("--ca", "keys/ca.crt", "--key", "site-0.key", "--state", "n", "--clients", "0-3", "--model", "keys")
    result = seedtune("deploy", "node", "--server", "fed.example.org:443", *flags, "--print")
    assert (result.code, result.err) == (0, "")
    printed = processes_of(result.out)
    assert list(printed) == ["worker", "supernode", "superexec"]
    assert printed["worker"][2:] == [
        "-m", "seedtune.engines.worker", "--socket", f"{made}/n/worker.sock", "--state", f"{made}/n/worker",
        "--clients", "0-3", "--model", f"{made}/keys", "--device", "cpu", "--identity", f"{made}/site-0.key",
    ]  # fmt: skip
    node = printed["supernode"]
    assert node[2:4] == ["-m", "seedtune.flower_app.own_app"]  # in place of flower-supernode
    assert option(node, "--superlink") == "fed.example.org:443" and option(node, "--host") == "127.0.0.1"
    assert option(node, "--auth-supernode-private-key") == str(made / "site-0.key")
    assert option(node, "--node-config") == f'worker-socket="{made}/n/worker.sock"'
    assert not (made / "n").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("server", "quickstart", "--out", "run"),
            "needs --keys FOLDER, or, to try things out on loopback, --plain-http",
        ),
        (("server", "quickstart", "--out", "run", "--keys", "keys", "--plain-http"), "give it, or them, not both"),
        (("server", "quickstart", "--out", "run", "--keys", "none"), "none/server.key: cannot be read"),
        (("node", "--server", "h:1"), "needs --ca FILE and --key FILE"),
        (("node", "--server", "h:1", "--ca", "keys/ca.crt"), "a node needs both"),
        (("node", "--server", "192.0.2.7:8000", "--plain-http"), "only to a server on loopback"),
        (("node", "--server", "127.0.0.1", "--plain-http"), "must be HOST:PORT"),
        (("node", "--server", "127.0.0.1:99999", "--plain-http"), "must be HOST:PORT"),
        (
            ("node", "--server", "localhost:1", "--plain-http", "--clients", "a-b"),
            "clients 'a-b': expected numbers below a million and ranges",
        ),
        (("node", "--server", "localhost:1", "--plain-http", "--data", "none"), "there is no such file"),
        (("node", "--server", "localhost:1", "--plain-http", "--state", "a" * 100), "a shorter path"),
        (("node", "--server", "localhost:1", "--plain-http", "--state", 'a"b'), "a quotation mark"),
        (("nginx", "--keys", "keys", "--listen", "443; evil"), "reads as something else"),
        (("nginx", "--keys", "keys", "--max-body", "lots"), "must be a size such as 64m"),
    ],
)
def test_what_cannot_be_started_is_refused_in_one_line(seedtune, made, bundle, arguments, message):
    refused(seedtune("deploy", *arguments, "--print" if arguments[0] != "nginx" else "--port=8000"), message)


def test_plain_http_is_printed_for_loopback(seedtune, made, bundle):
    link = processes_of(seedtune("deploy", "server", "--out", "run", "--plain-http", "--print").out)["superlink"]
    assert "--insecure" in link and option(link, "--host") == "127.0.0.1"
    for server in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
        node = processes_of(seedtune("deploy", "node", "--server", server, "--plain-http", "--print").out)["supernode"]
        assert "--insecure" in node and "--auth-supernode-private-key" not in node


def test_the_sites_text_opens_ten_paths_and_no_other(seedtune, made):
    text = seedtune("deploy", "nginx", "--keys", "keys", "--listen", "127.0.0.1:8443", "--max-body", "2g").out
    assert text.count("location") == 2 and "location / {\n        return 403;" in text
    assert "listen 127.0.0.1:8443 ssl;" in text and "server_name fed.example.org;" in text
    assert "client_max_body_size 2g;" in text and f"ssl_certificate_key {made}/keys/server.key;" in text
    assert "register-node" not in text and "control" not in text.lower() and len(nginx.FLEET_PATHS) == 10
    assert seedtune("deploy", "nginx", "--keys", "keys", "--out", "site.conf").code == 0
    refused(seedtune("deploy", "nginx", "--keys", "keys", "--out", "site.conf"), "site.conf: is there already")


def test_a_port_in_use_is_refused():
    with places.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DeployError, match="Address already in use; choose another with --port"):
            places.check_free(taken.getsockname()[1])
    places.check_free(places.free_port())


def test_without_flower_the_extra_is_named(seedtune, monkeypatch):
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    refused(seedtune("deploy", "keys", "keys"), "pip install '.[flower]'")


def test_questions_to_the_superlink_are_flwr_commands(tmp_path):
    place = flower.Place(tmp_path)
    asked = {name: flower.control(place, *arguments).arguments[1:] for name, arguments in {
        "list": ("list",), "stop": ("stop", "7"), "register": ("supernode", "register", "a.pub", "--name", "a"),
    }.items()}  # fmt: skip
    assert asked == {
        "list": ("list", "seedtune", "--format", "json"), "stop": ("stop", "7", "seedtune", "--format", "json"),
        "register": ("supernode", "register", "a.pub", "seedtune", "--name", "a", "--format", "json"),
    }  # fmt: skip


def test_a_run_is_begun_once_and_only_gone_on_with_as_it_was_begun(tmp_path, tiny_model, tiny_table):
    recipe, folder = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(tiny_runs.toml(tiny_runs.values(tiny_model, tiny_table)))
    with pytest.raises(DeployError, match="holds no run, and no recipe was given"):
        begin.begin(folder, None, None, [])
    begin.begin(folder, str(recipe), None, ["local.learning_rate=0.5"])
    held = run_store.recipe_of(folder)
    assert held.local.learning_rate == 0.5 and Path(held.model.name).is_absolute() and held.run.num_threads
    for given in ((str(recipe), None, ["local.learning_rate=0.5"]), (None, None, [])):
        begin.begin(folder, *given)
    with pytest.raises(DeployError, match=r"holds a run with local.learning_rate = 0.5, and 0.01 was asked for"):
        begin.begin(folder, str(recipe), None, [])
    with pytest.raises(ConfigError, match="unknown key"):
        begin.begin(folder, str(recipe), None, ["local.lerning_rate=0.5"])
    assert run_store.recipe_of(folder) == held
