"""The roster: which clients there are and with which public keys they sign, itself signed by the certificate authority.

A server keeps the roster and hands it out; it cannot write one, because the authority's private key is not on it. A
newer roster has a higher serial number, and a client that has seen it takes no older one: so a key is revoked.
"""

import base64
import binascii
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nufed.common.errors import PeerError
from nufed.common.privacy.secure.codec import LONGEST_NAME, MOST_CLIENTS
from nufed.common.privacy.secure.keys import Identity, is_signed, point_of
from nufed.common.untrusted import shown

FORMAT = "nufed-roster-1"
_LABEL = "roster"
_MOST_BYTES = 64 * 2**20
_HOW = "The federation's operator makes a new one with `nufed certs roster`."


@dataclass(frozen=True)
class Roster:
    """Clients' public keys by name.

    Attributes:
        serial: higher in each newer roster of one authority; 0 of a roster that nobody signed.
        expires: from when on it is not taken any more; None: never.
    """

    keys: Mapping[str, ec.EllipticCurvePublicKey]
    serial: int = 0
    expires: dt.datetime | None = None
    _points: Mapping[str, bytes] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse two names with one key, whose holder would count twice."""
        points = {name: point_of(key) for name, key in self.keys.items()}
        owners: dict[bytes, str] = {}
        for name, point in points.items():
            other = owners.setdefault(point, name)
            if other != name:
                _refuse(f"one key for each client, got one for both {shown(other)} and {shown(name)}")
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))
        object.__setattr__(self, "_points", MappingProxyType(points))

    def has_signed(self, name: str, signature: bytes, label: str, *content: bytes) -> bool:
        """Return whether the client of this name is known and signed this content under this label."""
        point = self._points.get(name)
        return point is not None and is_signed(point, signature, label, *content)

    def signed(self, authority: ec.EllipticCurvePrivateKey) -> bytes:
        """Return the roster as a file that the authority signed: JSON, UTF-8."""
        expires = self.expires
        roster = json.dumps(
            {
                "format": FORMAT,
                "serial": self.serial,
                "expires": expires.astimezone(dt.UTC).isoformat(timespec="seconds") if expires else None,
                "clients": {name: base64.b64encode(_encoded(self.keys[name])).decode() for name in sorted(self.keys)},
            },
            ensure_ascii=False,
        )
        signature = Identity("authority", authority).sign(_LABEL, roster.encode())
        document = {"roster": roster, "signature": base64.b64encode(signature).decode()}
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def read(
        cls,
        content: bytes,
        authority: ec.EllipticCurvePublicKey,
        *,
        now: dt.datetime | None = None,
        known_serial: int = 0,
    ) -> Self:
        """Return the roster of a file, if it is the authority's, in force, and not older than one seen before.

        Args:
            content: the file's.
            authority: the public key of the certificate authority.
            now: with a time zone; the clock's time where none is given.
            known_serial: highest serial number of a roster seen so far.

        Raises:
            PeerError: it is not.
        """
        if len(content) > _MOST_BYTES:
            _refuse(f"at most {_MOST_BYTES} bytes, got {len(content)}")
        document = _object(content, {"roster": str, "signature": str}, "a file")
        if not is_signed(point_of(authority), _decoded(document["signature"]), _LABEL, document["roster"].encode()):
            _refuse("the signature of this federation's certificate authority, got another one")
        wanted = {"format": str, "serial": int, "expires": (str, type(None)), "clients": dict}
        fields = _object(document["roster"].encode(), wanted, "a roster")
        if fields["format"] != FORMAT:
            _refuse(f"the format {FORMAT!r}, got {shown(fields['format'])}")
        if not max(1, known_serial) <= fields["serial"] < 2**63:
            _refuse(f"a serial number from {max(1, known_serial)}, got {shown(fields['serial'])}")
        expires = _time(fields["expires"]) if fields["expires"] is not None else None
        if expires is not None and expires <= (now or dt.datetime.now(dt.UTC)):
            _refuse(f"one in force, got one that expired at {expires.isoformat()} by this machine's clock")
        if not 1 <= len(fields["clients"]) <= MOST_CLIENTS:
            _refuse(f"1 to {MOST_CLIENTS} clients, got {len(fields['clients'])}")
        return cls({_name(name): _key(key) for name, key in fields["clients"].items()}, fields["serial"], expires)


def _object(content: bytes, wanted: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a JSON object that has these fields of these types, and no others."""
    try:
        value = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        _refuse(f"{what} of JSON in UTF-8, got other bytes")
    if not isinstance(value, dict) or value.keys() != wanted.keys():
        _refuse(f"{what} with the fields {', '.join(wanted)}, got others")
    for name, kind in wanted.items():
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            _refuse(f"{what} whose {name} has another type, got {shown(value[name])}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        _refuse("each field and each client once, got one twice")
    return value


def _name(text: str) -> str:
    if not 1 <= len(text) <= LONGEST_NAME or not text.isprintable():
        _refuse(f"names of 1 to {LONGEST_NAME} printable characters, got {shown(text)}")
    return text


def _key(text: Any) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_der_public_key(_decoded(text))
    except (ValueError, UnsupportedAlgorithm):
        _refuse("public keys in DER, got other bytes")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        _refuse("keys of the curve P-384, got another kind")
    return key


def _time(text: str) -> dt.datetime:
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        _refuse(f"a time in ISO 8601, got {shown(text)}")
    if time.tzinfo is None:
        _refuse(f"a time with its zone, got {shown(text)}")
    return time


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        _refuse(f"base64, got {shown(text)}")


def _encoded(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _refuse(what: str) -> NoReturn:
    raise PeerError(f"Expected a roster of clients' keys: {what}. {_HOW}")
