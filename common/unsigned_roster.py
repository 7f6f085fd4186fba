"""Names and public keys of clients as a server without a signed roster hands them out.

What an authority has signed is `nufed.common.privacy.secure.Roster.signed`. Here nobody but the server vouches for the
keys: it is for simulations, and for trials in which the server is trusted with what secure aggregation would hide.
"""

from functools import lru_cache

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nufed.common.errors import PeerError, WireError
from nufed.common.privacy.secure import Roster


def roster_bytes(roster: Roster) -> bytes:
    """Return names and keys of a roster, without a signature; what the authority signs is `Roster.signed`."""
    lines = (f"{name}\t{encoded_key(key).decode()}" for name, key in sorted(roster.keys.items()))
    return "\n".join(lines).encode()


@lru_cache(maxsize=8)
def unsigned_roster(content: bytes) -> Roster:
    """Return the roster that `roster_bytes` made these bytes of.

    Raises:
        WireError: it did not.
    """
    keys = {}
    for line in content.split(b"\n"):
        name, _, key = line.partition(b"\t")
        try:
            keys[name.decode()] = decoded_key(key)
        except UnicodeDecodeError:
            raise WireError("expected names of clients in UTF-8") from None
    try:
        return Roster(keys)
    except PeerError as error:
        raise WireError(str(error)) from error


def encoded_key(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key (X9.62, compressed) as hexadecimal digits."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint).hex().encode()


def decoded_key(digits: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of these hexadecimal digits.

    Raises:
        WireError: it is none on the curve P-384.
    """
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), bytes.fromhex(digits.decode()))
    except (ValueError, UnicodeDecodeError):
        raise WireError("expected the public key of a client, on the curve P-384") from None
