"""The proxy for real: a SuperNode with a registered key comes through, everything else is refused, however it is spelt.

Starts Flower's processes and nginx on loopback, which takes a while: `make deploy-test` runs it, `make test` does not.
"""

import http.client
import os
import ssl
import time
from functools import partial

import pytest

pytest.importorskip("flwr")

from proxied import NGINX, proxy

from seedtune.deploy import flower, keys, places
from seedtune.deploy.control import Control
from seedtune.deploy.processes import Child, ended_together

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.skipif("SEEDTUNE_DEPLOYMENT" not in os.environ, reason="make deploy-test sets SEEDTUNE_DEPLOYMENT"),
]
SECONDS = 60.0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A SuperLink with one registered node, and nginx before it; gives folder, keys and nginx's port."""
    folder = tmp_path_factory.mktemp("served")
    made, port = folder / "keys", places.free_port()
    keys.make_server_keys(made, [])
    place = flower.Place(folder / "service")
    with places.opened(place):
        place.home.joinpath("config.toml").write_text(flower.connection_file(port, made / keys.CA_CERTIFICATE))
        link, control = Child(flower.superlink(place, port, made)), Control(place, port, made / keys.CA_CERTIFICATE)
        with ended_together([link]), proxy(folder / "nginx", made, port) as public:
            link.start()
            wait_for(control.is_up)
            control.register(keys.make_node_key(folder / "site-0.key"))
            yield folder, made, public


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def asked(served, method, path, body=b""):
    """The answer's status, with the path as it is given."""
    _, made, port = served
    context = ssl.create_default_context(cafile=made / keys.CA_CERTIFICATE)
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
    connection.putrequest(method, path)
    connection.putheader("Content-Type", "application/protobuf")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_node_with_a_registered_key_comes_through_and_one_without_does_not(served):
    folder, made, port = served
    keys.make_node_key(folder / "stranger.key")
    said = {}
    for name in ("site-0", "stranger"):
        place = flower.Place(folder / name)
        with places.opened(place):
            config, key = {"worker-socket": str(folder / "none")}, folder / f"{name}.key"
            ca, own = made / keys.CA_CERTIFICATE, places.free_port()
            node = Child(flower.supernode(place, f"localhost:{port}", ca, key, own, config))
            with ended_together([node]):
                node.start()
                wait_for(partial(settled, node))
                said[name] = place.log("supernode").read_text()
    assert "SuperNode ID: " in said["site-0"]
    assert "SuperNode ID: " not in said["stranger"] and "Failed to" in said["stranger"]


def settled(node):
    return "SuperNode ID: " in node.command.log.read_text() or not node.is_running


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run", "/v1/control/list-runs", "/v1/control/register-node", "/v1/runtime/acquire-task",
        "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/", "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1", "/health", "/docs", "/openapi.json", "/",
        "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/%252e%252e/control/list-runs", "/v1/control/list-runs/../../fleet/pull-messages",
        "/v1//fleet/pull-messages", "/v1/fleet/pull%2dmessages",
        "//v1/control/list-runs", "/V1/CONTROL/list-runs", "/v1/control/list-runs;/v1/fleet/pull-messages",
    ],
)  # fmt: skip
def test_every_other_path_is_refused_however_it_is_spelt(served, path):
    assert asked(served, "POST", path) == 403


def test_a_fleet_path_asks_for_the_nodes_signature_and_for_post(served):
    assert asked(served, "POST", "/v1/fleet/pull-messages") == 401
    assert asked(served, "GET", "/v1/fleet/pull-messages") == 403


def test_a_message_that_is_too_large_is_refused_before_it_is_read(served):
    _, made, port = served
    context = ssl.create_default_context(cafile=made / keys.CA_CERTIFICATE)
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
    connection.putrequest("POST", "/v1/fleet/push-object")
    connection.putheader("Content-Length", str(65 * 2**20))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
