"""Keys and certificates: what is made is private from the start, belongs together, and is never overwritten."""

import os
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from seedtune.deploy import keys, private
from seedtune.errors import DeployError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of server keys for a name and two addresses, with one node's key."""
    before = os.umask(0)  # the laxest: modes must not depend on it
    try:
        folder = tmp_path_factory.mktemp("keys") / "server"
        keys.make_server_keys(folder, ["fed.example.org", "192.0.2.7", "2001:db8::1"])
        keys.make_node_key(folder / "site-0.key")
    finally:
        os.umask(before)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """The same files, to be spoilt."""
    private.make_folder(tmp_path / "keys")
    for path in made.iterdir():
        if path.is_file():
            private.write_new(tmp_path / "keys" / path.name, path.read_bytes(), path.stat().st_mode & 0o777)
    return tmp_path / "keys"


def refused(match, call, *arguments):
    with pytest.raises(DeployError, match=match) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


def test_private_files_are_private_whatever_the_umask(made):
    modes = {path.name: path.stat().st_mode & 0o777 for path in (made, *made.iterdir())}
    assert modes == {
        "server": 0o700, "nodes": 0o700, "ca.key": 0o600, "server.key": 0o600, "site-0.key": 0o600,
        "ca.crt": 0o644, "server.crt": 0o644, "site-0.pub": 0o644,
    }  # fmt: skip


def test_a_client_that_trusts_the_authority_accepts_the_server_by_its_names_alone(made):
    trusting = ssl.create_default_context(cafile=made / "ca.crt")
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(made / "server.crt", made / "server.key")
    for name in ("localhost", "127.0.0.1", "fed.example.org", "192.0.2.7", "2001:db8::1"):
        shaken(trusting, serving, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shaken(trusting, serving, "other.example.org")
    assert keys.hosts_of(made) == ["fed.example.org", "192.0.2.7", "2001:db8::1"]


def shaken(trusting, serving, name):
    """A TLS handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(down, up, server_hostname=name)
    server = serving.wrap_bio(up, down, server_side=True)
    for side in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()


def test_the_authority_signs_servers_and_nothing_that_signs_on(made):
    authority = x509.load_pem_x509_certificate((made / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((made / "server.crt").read_bytes())
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_nodes_key_is_the_pair_that_flower_reads(made):
    key = load_ssh_private_key((made / "site-0.key").read_bytes(), None)
    public = load_ssh_public_key((made / "site-0.pub").read_bytes())
    assert key.public_key() == public and key.curve.name == "secp384r1"
    keys.check_node_key(made / "site-0.key")
    text = (made / "site-0.pub").read_text()
    assert text.split()[2] == "site-0" and text.startswith(keys.public_key(made / "site-0.pub"))


def test_nothing_is_overwritten(made):
    before = {path: path.read_bytes() for path in made.iterdir() if path.is_file()}
    refused("server.crt: is there already", keys.make_server_keys, made, ["fed.example.org"])
    refused("site-0.pub: is there already", keys.make_node_key, made / "site-0.key")
    refused("site-0.pub: is the name of a public key", keys.make_node_key, made / "site-0.pub")
    refused("is there already", private.write_new, made / "ca.key", b"")
    assert before == {path: path.read_bytes() for path in made.iterdir() if path.is_file()}


def test_a_new_certificate_is_made_by_the_old_authority(copy):
    authority = (copy / "ca.crt").read_bytes()
    (copy / "server.crt").unlink()
    refused("holds server.key but no server.crt", keys.make_server_keys, copy, [])
    (copy / "server.key").unlink()
    assert [path.name for path in keys.make_server_keys(copy, ["new.example.org"])] == ["server.key", "server.crt"]
    assert (copy / "ca.crt").read_bytes() == authority and keys.hosts_of(copy) == ["new.example.org"]
    assert keys.check_server_keys(copy) is None


def test_keys_that_others_may_read_are_refused(copy):
    for name, check in (("server.key", keys.check_server_keys), ("site-0.key", keys.check_node_key)):
        (copy / name).chmod(0o640)
        refused(rf"{name}: has mode 0640.*chmod 0600", check, copy if name == "server.key" else copy / name)
    copy.chmod(0o755)
    refused("has mode 0755.*chmod 0700", keys.make_server_keys, copy, [])


def test_what_does_not_belong_together_is_refused(copy, tmp_path):
    other = tmp_path / "other"
    keys.make_server_keys(other, [])
    for name, match in (("server.key", "is not the key of server.crt"), ("ca.crt", "was not signed by ca.crt")):
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes((other / name).read_bytes())
        refused(match, keys.check_server_keys, copy)
        (copy / name).write_bytes(kept)
    (copy / "server.key").write_bytes(b"nonsense")
    refused("is damaged", keys.check_server_keys, copy)
    (copy / "ca.crt").write_bytes(b"nonsense")
    refused("holds no certificate", keys.check_ca, copy / "ca.crt")


def test_a_certificate_that_expires_is_said_and_one_that_has_is_refused(made):
    now = datetime.now(UTC)
    assert keys.check_server_keys(made, now + timedelta(days=keys.SERVER_DAYS - keys.WARN_DAYS - 1)) is None
    note = keys.check_server_keys(made, now + timedelta(days=keys.SERVER_DAYS - keys.WARN_DAYS + 1))
    assert "expires on" in note and "seedtune deploy keys" in note
    for late in (timedelta(days=keys.SERVER_DAYS), timedelta(days=-1)):
        refused("is valid from", keys.check_server_keys, made, now + late)


@pytest.mark.parametrize("host", ["", "https://fed", "fed:443", "two words", "*.example.org", "ümlaut.example"])
def test_hosts_that_are_none_are_refused_before_anything_is_made(host, tmp_path):
    refused("must be a name or an address alone", keys.make_server_keys, tmp_path / "new", [host])
    assert not (tmp_path / "new").exists()


def test_what_is_no_node_key_is_refused(copy, tmp_path):
    refused("is no node key", keys.check_node_key, copy / "server.key")
    refused("cannot be read: No such file", keys.check_node_key, tmp_path / "none.key")
    refused("is no public key", keys.public_key, copy / "ca.crt")
    refused("is no public key", keys.public_key, tmp_path / "none.pub")
