"""Cards are taken from whom they name, and from nobody else."""

import subprocess
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from seedtune.errors import DataError, MessageError
from seedtune.privacy.identities import Identity, Trust, read_roster
from seedtune.privacy.public import Card

AGREEMENT = bytes(range(32))


@pytest.fixture(scope="module")
def identities():
    return Identity.generated(), Identity.generated()


def ssh(identity: Identity) -> str:
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return identity.key.public_key().public_bytes(*form).decode()


def refused(trust: Trust, card: Card) -> str:
    with pytest.raises(MessageError) as caught:
        trust.check(card)
    return str(caught.value)


def test_signed_cards_are_taken(identities):
    given, first_come = Trust({3: identities[0].public}), Trust(None, {3: identities[0].public})
    for trust in (given, first_come):
        for agreement in (AGREEMENT, bytes(32)):  # a client that starts again has another key of agreement
            trust.check(identities[0].card(3, agreement))


@pytest.mark.parametrize(
    "altered",
    [
        lambda card, other: replace(card, agreement=bytes(32)),
        lambda card, other: replace(card, client=4),
        lambda card, other: replace(card, identity=other.public),
        lambda card, other: replace(card, signature=card.signature[::-1]),
        lambda card, other: replace(card, signature=b""),
        lambda card, other: replace(card, signature=bytes(96)),
        lambda card, other: replace(card, identity=b"\x02" + b"\xff" * 48),
        lambda card, other: replace(card, identity=b""),
    ],
)
def test_unsigned_and_swapped_keys_are_refused(identities, altered):
    card = altered(identities[0].card(3, AGREEMENT), identities[1])
    assert "is not signed by the identity that it comes with" in refused(Trust(None), card)


def test_a_key_that_another_identity_signed_in_a_clients_name_is_refused(identities):
    swapped = identities[1].card(3, AGREEMENT)
    assert "another identity than the roster of identities says" in refused(Trust({3: identities[0].public}), swapped)
    assert "client 3 is not in the roster of identities" in refused(Trust({4: identities[1].public}), swapped)
    Trust(None).check(swapped)
    met = Trust(None, {3: identities[0].public})
    assert "another identity than it first came with" in refused(met, swapped)


def test_keys_of_ssh_and_of_openssl_are_read(identities, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", tmp_path / "ssh"], check=True)
    private = serialization.PrivateFormat
    for name, form in {"pem": private.PKCS8, "openssh": private.OpenSSH}.items():
        data = identities[0].key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        (tmp_path / name).write_bytes(data)
        assert Identity.of_file(tmp_path / name).public == identities[0].public
    (tmp_path / "roster").write_text(
        f"# who serves whom\n0-2,7 {ssh(identities[0])} hospital-a\n\n3 {(tmp_path / 'ssh.pub').read_text()}"
    )
    known = read_roster(tmp_path / "roster")
    assert sorted(known) == [0, 1, 2, 3, 7] and known[7] == identities[0].public
    assert known[3] == Identity.of_file(tmp_path / "ssh").public
    assert "EllipticCurve" not in repr(identities[0])


def test_an_identity_that_is_kept_is_the_same_again_and_nobody_elses(tmp_path):
    first = Identity.kept(tmp_path / "state" / "identity")
    assert Identity.kept(tmp_path / "state" / "identity").public == first.public
    assert (tmp_path / "state" / "identity").stat().st_mode & 0o777 == 0o600


def test_what_is_no_identity_is_refused(tmp_path):
    def text(path):
        with pytest.raises(DataError) as caught:
            Identity.of_file(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    other = ec.generate_private_key(ec.SECP256R1())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "p256").write_bytes(other.private_bytes(*form, serialization.NoEncryption()))
    (tmp_path / "locked").write_bytes(other.private_bytes(*form, serialization.BestAvailableEncryption(b"word")))
    (tmp_path / "text").write_text("no key")
    assert "is no ECDSA key on P-384: make one with" in text(tmp_path / "p256")
    for name in ("locked", "text", "absent"):
        assert "give a private key without a passphrase" in text(tmp_path / name)


@pytest.mark.parametrize(
    "line",
    ["3", "x ecdsa-sha2-nistp384 AAAA", "3 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtB3nYDLB2DQ8X1SWAzqeqzVkvz", "3 key"],
)
def test_a_roster_line_that_is_none_is_named(line, tmp_path):
    path = tmp_path / "roster"
    path.write_text(f"# first\n{line}\n")
    with pytest.raises(DataError, match="line 2: is not clients and a public key"):
        read_roster(path)


@pytest.mark.parametrize("clients", ["3-1", "0-9999999999", "1,"])
def test_clients_of_a_roster_are_checked(clients, identities, tmp_path):
    path = tmp_path / "roster"
    path.write_text(f"{clients} {ssh(identities[0])}\n")
    with pytest.raises(DataError, match="line 1: is not clients and a public key"):
        read_roster(path)


def test_a_roster_names_a_client_once(identities, tmp_path):
    path = tmp_path / "roster"
    path.write_text(f"0-3 {ssh(identities[0])}\n3 {ssh(identities[1])}\n")
    with pytest.raises(DataError, match="line 2: client 3 is named twice"):
        read_roster(path)
    with pytest.raises(DataError, match="No such file"):
        read_roster(tmp_path / "absent")
