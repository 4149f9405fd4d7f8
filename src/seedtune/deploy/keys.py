"""A private certificate authority, the server's certificate, and the keys by which the server knows its nodes.

    ca.key, ca.crt          the authority: its key signs server certificates and is needed for nothing else
    server.key, server.crt  what the server shows; nodes check it against ca.crt
    nodes/NAME.pub          public keys of the nodes that may take part

All keys are ECDSA P-384; a node's key is in the OpenSSH format that Flower takes. Guarantees: a private key is of mode
0600 from its first byte on and is never overwritten. Nodes hold no certificate: a node signs each request with its key.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)  # fmt: skip
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import DeployError
from . import private

CA_CERTIFICATE, CA_KEY, SERVER_CERTIFICATE, SERVER_KEY = "ca.crt", "ca.key", "server.crt", "server.key"
NODES = "nodes"
CA_DAYS, SERVER_DAYS, WARN_DAYS = 3650, 730, 30
LOOPBACK = ("localhost", "127.0.0.1")
"""Names that every server certificate carries: the server's own processes reach one another by them."""


def make_server_keys(folder: Path, hosts: Sequence[str]) -> list[Path]:
    """Makes what is missing of an authority and a server certificate for `hosts` (names or addresses) in `folder`.

    Returns the files made. Where the authority is there already, only a new certificate is made: that is how one that
    expires is renewed.

    Raises:
        DeployError: a certificate is there already; one half of a pair is missing; a host that is none.
    """
    names = [_name(host) for host in dict.fromkeys((*LOOPBACK, *hosts))]
    private.make_folder(folder)
    private.make_folder(folder / NODES)
    has_authority = _has_pair(folder, CA_CERTIFICATE, CA_KEY)
    if _has_pair(folder, SERVER_CERTIFICATE, SERVER_KEY):
        raise DeployError(
            f"{folder / SERVER_CERTIFICATE}: is there already and is never overwritten: move it and {SERVER_KEY} away "
            f"for a new one, or choose another folder"
        )
    made = [] if has_authority else _make_authority(folder)
    private.check(folder / CA_KEY)
    authority = _certificate(folder / CA_CERTIFICATE)
    signer: Any = load_pem_private_key((folder / CA_KEY).read_bytes(), None)
    key = _new_key()
    certificate = (
        _builder("seedtune server", key, authority.subject, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_requests=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    return made + _write_pair(folder, SERVER_CERTIFICATE, certificate, SERVER_KEY, key)


def make_node_key(path: Path) -> Path:
    """Makes a node's private key at `path`, and beside it its public key, whose path is returned.

    Raises:
        DeployError: one of them is there already.
    """
    public = path.with_suffix(".pub")
    if public == path:
        raise DeployError(f"{path}: is the name of a public key: give the private one another, such as site-0.key")
    if public.exists():
        raise DeployError(f"{public}: is there already and is never overwritten: choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeployError(f"{path}: cannot be written: {error.strerror}") from None
    key = _new_key()
    private.write_new(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    text = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    private.write_new(public, f"{text} {path.stem}\n".encode(), 0o644)
    return public


def check_node_key(path: Path) -> None:
    """
    Raises:
        DeployError: not a private key of an elliptic curve in OpenSSH's format, or others may read it.
    """
    private.check(path)
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeployError(
            f"{path}: is no node key ({error}): 'seedtune deploy node-key {path.stem}.key' makes one"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeployError(f"{path}: is a key of another kind than ECDSA: 'seedtune deploy node-key' makes the right")


def public_key(path: Path) -> str:
    """A node's public key without its comment.

    Raises:
        DeployError: the file holds none.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise DeployError(f"{path}: is no public key ({error}): copy NAME.pub here, as the node made it") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeployError(f"{path}: is a key of another kind than ECDSA: 'seedtune deploy node-key' makes the right")
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def check_server_keys(folder: Path, now: datetime | None = None) -> str | None:
    """A note where the server certificate expires soon, else None.

    Raises:
        DeployError: a file is missing or readable by others; the key, the certificate and the authority do not belong
            together; the certificate has expired or is not valid yet.
    """
    private.check(folder / SERVER_KEY)
    certificate, authority = _certificate(folder / SERVER_CERTIFICATE), _certificate(folder / CA_CERTIFICATE)
    renew = f"move server.crt and server.key away, and 'seedtune deploy keys {folder} --host ...' makes new ones"
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        raise DeployError(f"{folder / SERVER_CERTIFICATE}: was not signed by {CA_CERTIFICATE}: {renew}") from None
    try:
        key = load_pem_private_key((folder / SERVER_KEY).read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise DeployError(f"{folder / SERVER_KEY}: is damaged: {renew}") from None
    if key.public_key() != certificate.public_key():
        raise DeployError(f"{folder / SERVER_KEY}: is not the key of {SERVER_CERTIFICATE}: {renew}")
    now = now or datetime.now(UTC)
    begins, ends = certificate.not_valid_before_utc, min(certificate.not_valid_after_utc, authority.not_valid_after_utc)
    if not begins <= now < ends:
        raise DeployError(
            f"{folder / SERVER_CERTIFICATE}: is valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}, and now it is "
            f"{now:%Y-%m-%d}: {renew}"
        )
    if ends - now < timedelta(days=WARN_DAYS):
        return f"the server certificate expires on {ends:%Y-%m-%d}: {renew}"
    return None


def check_ca(path: Path) -> None:
    """
    Raises:
        DeployError: the file holds no certificate.
    """
    _certificate(path)


def hosts_of(folder: Path) -> list[str]:
    """The names and addresses that a server certificate is for, other than loopback's."""
    extension = _certificate(folder / SERVER_CERTIFICATE).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return [name for name in (str(entry.value) for entry in extension.value) if name not in LOOPBACK]


def _make_authority(folder: Path) -> list[Path]:
    key = _new_key()
    certificate = (
        _builder("seedtune authority", key, None, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_requests=False), critical=True)
        .sign(key, hashes.SHA384())
    )
    return _write_pair(folder, CA_CERTIFICATE, certificate, CA_KEY, key)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name | None, days: int
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of nodes differ
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(signs_requests: bool) -> x509.KeyUsage:
    """Of a server's key where it signs handshakes, else of an authority's, which signs certificates."""
    return x509.KeyUsage(
        digital_signature=signs_requests, key_cert_sign=not signs_requests, crl_sign=not signs_requests,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        if not host or set(host) & set(":/ @*"):
            raise ValueError
        return x509.DNSName(host)
    except ValueError:
        raise DeployError(
            f"--host {host!r}: must be a name or an address alone, such as fed.example.org or 192.0.2.7"
        ) from None


def _has_pair(folder: Path, certificate: str, key: str) -> bool:
    found = [name for name in (certificate, key) if (folder / name).exists()]
    if len(found) == 1:
        missing = key if found == [certificate] else certificate
        raise DeployError(f"{folder}: holds {found[0]} but no {missing}: bring it back, or choose another folder")
    return bool(found)


def _write_pair(
    folder: Path, certificate_name: str, certificate: x509.Certificate, key_name: str, key: ec.EllipticCurvePrivateKey
) -> list[Path]:
    private.write_new(folder / key_name, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.write_new(folder / certificate_name, certificate.public_bytes(Encoding.PEM), 0o644)
    return [folder / key_name, folder / certificate_name]


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise DeployError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise DeployError(f"{path}: holds no certificate") from None
