"""Who a client is: a signing key that peers know, so that the server cannot put keys of its own in clients' names.

An identity is an ECDSA key on P-384: on a node that of its registration with Flower, else one made for the run. It
signs a client's key of agreement, which lives as long as its process; everything else of a sum follows from that key.

How peers know each other's identities is a decision of those who run them. A roster file, brought to each node by
another way than through the server, is the strong form. Without one a client takes the identity that a peer first comes
with and no other after it: a server that lies from the first message on can then sit between all clients, and see each
one's values.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from ..errors import ConfigError, DataError, MessageError
from ..recipe_text import clients_of
from .public import IDENTITY_BYTES, SIGNATURE_BYTES, Card

_HALF = SIGNATURE_BYTES // 2
_CURVE, _ALGORITHM = ec.SECP384R1(), ec.ECDSA(SHA384())
_LABEL = b"seedtune secure sum 1: agreement key of client "


@dataclass(frozen=True)
class Identity:
    """A private signing key; `public` is what others know of it, a compressed point."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generated(cls) -> "Identity":
        return cls(ec.generate_private_key(_CURVE))

    @classmethod
    def of_file(cls, path: Path) -> "Identity":
        """The private key of a node, as `ssh-keygen -t ecdsa -b 384` or openssl writes it, without a passphrase.

        Raises:
            DataError: no such file, or another kind of key.
        """
        try:
            data = path.read_bytes()
            is_ssh = b"OPENSSH PRIVATE KEY" in data
            load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
            key = load(data, None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise DataError(f"identity {path}: {_line(error)}: give a private key without a passphrase") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != _CURVE.name:
            raise DataError(f"identity {path}: is no ECDSA key on P-384: make one with 'ssh-keygen -t ecdsa -b 384'")
        return cls(key)

    @classmethod
    def kept(cls, path: Path) -> "Identity":
        """The one in a file that only its owner may read; made where there is none.

        Raises:
            DataError: what is there is no identity, or it cannot be written.
        """
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(cls.generated().key.private_bytes(*form))
        except FileExistsError:
            pass
        except OSError as error:
            raise DataError(f"identity {path}: cannot be written: {error.strerror}") from None
        return cls.of_file(path)

    @property
    def public(self) -> bytes:
        return _point(self.key.public_key())

    def card(self, client: int, agreement: bytes) -> Card:
        """`agreement` as this identity vouches for it in a client's name."""
        r, s = decode_dss_signature(self.key.sign(_signed(client, agreement), _ALGORITHM))
        return Card(client, agreement, self.public, r.to_bytes(_HALF) + s.to_bytes(_HALF))


@dataclass(frozen=True)
class Credentials:
    """What a node is given: its identity, and the identities of all clients, None where they are taken as they come."""

    identity: Identity
    roster: Mapping[int, bytes] | None = None


@dataclass(frozen=True)
class Trust:
    """The identities that a client takes for its peers': those of a roster; where there is none, those that they first
    came with (`met`)."""

    roster: Mapping[int, bytes] | None
    met: Mapping[int, bytes] = field(default_factory=dict)

    def check(self, card: Card) -> None:
        """
        Raises:
            MessageError: a card that is not signed by its identity, or an identity that is not its client's.
        """
        if not _is_signed(card):
            raise MessageError(f"the key of client {card.client} is not signed by the identity that it comes with")
        if self.roster is not None and card.client not in self.roster:
            raise MessageError(f"client {card.client} is not in the roster of identities: add its public key")
        known = self.met if self.roster is None else self.roster
        if known.get(card.client, card.identity) != card.identity:
            says = "it first came with" if self.roster is None else "the roster of identities says"
            raise MessageError(f"client {card.client} comes with another identity than {says}")


def read_roster(path: Path) -> dict[int, bytes]:
    """Identities by client, from lines such as `0-3,7 ecdsa-sha2-nistp384 AAAA... hospital-a`; # begins a comment.

    Raises:
        DataError: a file that cannot be read, a line that is none of these, or a client named twice.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"roster {path}: {_line(error)}") from None
    known: dict[int, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if not (text := line.split("#", 1)[0].strip()):
            continue
        try:
            clients, key = text.split(None, 1)
            public = serialization.load_ssh_public_key(key.encode())
            named, point = clients_of(clients), _point(public)
        except (ConfigError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
            raise DataError(
                f"roster {path}, line {number}: is not clients and a public key, such as "
                "'0-3,7 ecdsa-sha2-nistp384 AAAA...'"
            ) from None
        if twice := set(named) & set(known):
            raise DataError(f"roster {path}, line {number}: client {min(twice)} is named twice")
        known |= dict.fromkeys(named, point)
    return known


@lru_cache(maxsize=4096)
def _is_signed(card: Card) -> bool:
    """Cost: a millisecond, once a process."""
    if (len(card.identity), len(card.signature)) != (IDENTITY_BYTES, SIGNATURE_BYTES):
        return False
    halves = (int.from_bytes(card.signature[:_HALF]), int.from_bytes(card.signature[_HALF:]))
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, card.identity)
        public.verify(encode_dss_signature(*halves), _signed(card.client, card.agreement), _ALGORITHM)
    except (ValueError, InvalidSignature):
        return False
    return True


def _signed(client: int, agreement: bytes) -> bytes:
    return _LABEL + client.to_bytes(8, "little") + agreement


def _point(public: object) -> bytes:
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != _CURVE.name:
        raise ValueError("another key than one on P-384")
    return public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
