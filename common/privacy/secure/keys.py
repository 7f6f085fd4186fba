"""Keys of a round: identities that sign, X25519 keys that agree, and what is derived of them by HKDF-SHA256.

Every key has 256 bits from the operating system's generator or from HKDF over an X25519 secret; nothing is folded into
a smaller seed on the way to a mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256, sha384
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nufed.common.errors import WireError
from nufed.common.privacy.secure.codec import packed
from nufed.common.privacy.secure.messages import KEY

Entropy = Callable[[int], bytes]
"""Returns so many bytes that nobody can guess: os.urandom, but in tests."""

_SIGNING = ec.ECDSA(hashes.SHA384())


class Secret:
    """Holds what must not end in a log, a pickle or an exception's text.

    Zeroing is what Python allows: this copy is overwritten, those that a library made on the way are freed.
    """

    def __init__(self, content: bytes) -> None:
        self._content = bytearray(content)

    def reveal(self) -> bytes:
        """Return the content."""
        return bytes(self._content)

    def erase(self) -> None:
        """Overwrite the content with zeros."""
        self._content[:] = bytes(len(self._content))

    def __repr__(self) -> str:
        """Return a text without the content."""
        return "Secret(…)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("Expected secrets of a round to stay in the process that made them; do not pickle them.")


@dataclass(frozen=True)
class Identity:
    """A client's name and the private key whose public half the roster has.

    Attributes:
        name: the client's.
        key: the key with which it is admitted, e.g. as `nufed certs request` makes it.
    """

    name: str
    key: ec.EllipticCurvePrivateKey

    def sign(self, label: str, *content: bytes) -> bytes:
        """Return an ECDSA signature over the content, which counts under this label alone."""
        return self.key.sign(_labelled(label, *content), _SIGNING)

    def __repr__(self) -> str:
        """Return a text without the key."""
        return f"Identity({self.name!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("Expected a private key to stay in the process that read it; do not pickle it.")


def point_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the point of the curve P-384 that a public key is, 97 bytes, by which signatures are checked."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def is_signed(point: bytes, signature: bytes, label: str, *content: bytes) -> bool:
    """Return whether the holder of a key on the curve P-384 signed this content under this label."""
    return _is_signed(point, signature, sha384(_labelled(label, *content)).digest())


# In a simulation all clients of a cohort check the same signatures in one process: a hundred a round, not ten thousand.
@lru_cache(maxsize=4096)
def _is_signed(point: bytes, signature: bytes, digest: bytes) -> bool:
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        key.verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA384())))
    except (InvalidSignature, ValueError):
        return False
    return True


class AgreementKey:
    """Holds an X25519 private key of one round.

    Attributes:
        public: its public half, 32 bytes.
    """

    def __init__(self, private: bytes) -> None:
        self._private: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    def private_bytes(self) -> bytes:
        """Return the private key, 32 bytes, to be shared."""
        return self._held().private_bytes_raw()

    def derive(self, peer: bytes, label: str, *context: bytes) -> bytes:
        """Return a key of 32 bytes that the holder of the other private key derives as well.

        Args:
            peer: the other public key, 32 bytes.
            label: what the key is for.
            context: what both sides have seen alike; both public keys are part of it in any case.

        Raises:
            WireError: the other key is one of those of small order, with which anybody knows the secret.
        """
        try:
            secret = self._held().exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise WireError(
                "Expected an X25519 key of a peer, got one of small order, which hides nothing. Refuse this server."
            ) from None
        first, second = sorted((self.public, peer))
        return derived(secret, label, *context, first, second)

    def erase(self) -> None:
        """Drop the private key, which the library overwrites when it frees it."""
        self._private = None

    def __repr__(self) -> str:
        """Return a text without the private key."""
        return f"AgreementKey({self.public.hex()[:8]}…)"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("Expected secrets of a round to stay in the process that made them; do not pickle them.")

    def _held(self) -> X25519PrivateKey:
        if self._private is None:
            raise WireError("Expected a round that is going on, but its keys have been dropped. Start another round.")
        return self._private


def derived(secret: bytes, label: str, *context: bytes) -> bytes:
    """Return 32 bytes by HKDF-SHA256: the label is in the salt, the context in the info (RFC 5869)."""
    salt = sha256(_labelled(label)).digest()
    return HKDF(hashes.SHA256(), KEY, salt, sha256(packed(*context)).digest()).derive(secret)


def commitment(label: str, secret: bytes) -> bytes:
    """Return SHA-256 of a secret of 32 bytes or more, which tells nothing of it but whether a guess is right."""
    return sha256(_labelled(label, secret)).digest()


def _labelled(label: str, *content: bytes) -> bytes:
    return packed("nufed secure aggregation 1", label, *content)
