"""Whose keys a client believes in a round of secure aggregation, by the configuration of its node.

    secure-key                  file of this client's private key; without it a key is made for the run
    secure-authority            file of the authority's certificate: only a roster that it signed is believed
    trust-server-roster         without a signed roster, the server's word is taken for whose keys are whose
    require-secure-aggregation  this client trains for no server that asks for no secure aggregation

A server that is believed could name keys of its own as those of other clients, and see what secure aggregation hides.
"""

import datetime as dt
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nufed.client.seen_rosters import newest_serial, remember_serial, seen_path
from nufed.common.config import Scalar
from nufed.common.errors import PeerError, WireError
from nufed.common.privacy.secure import Roster
from nufed.common.secure_wire import LARGEST, ROSTER, SIGNED
from nufed.common.unsigned_roster import unsigned_roster

KEY, AUTHORITY, TRUSTS_SERVER = "secure-key", "secure-authority", "trust-server-roster"
REQUIRED = "require-secure-aggregation"
IDENTITY_KEY = "private-key"

_log = logging.getLogger("nufed.private")


def trust_config(key: Path | None, authority: Path | None, *, trusts_server: bool) -> dict[str, Scalar]:
    """Return what a node's configuration says of keys and of whom this client believes about those of others."""
    files = {KEY: key, AUTHORITY: authority}
    config: dict[str, Scalar] = {name: str(path.expanduser().absolute()) for name, path in files.items() if path}
    return {**config, **({TRUSTS_SERVER: True} if trusts_server else {})}


def believed_roster(config: Mapping[str, Any], node_config: Mapping[str, Any]) -> Roster:
    """Return the roster of a message, if it may be believed.

    Args:
        config: of the message.
        node_config: of this client.

    Raises:
        WireError: there is none.
        PeerError: it is not signed by this client's authority, has expired, or is older than one seen before.
    """
    content = config.get(ROSTER)
    if not isinstance(content, bytes) or len(content) > LARGEST:
        raise WireError("expected a roster of the clients' keys with the round's task")
    authority = node_config.get(AUTHORITY)
    is_signed = config.get(SIGNED) == 1
    if is_signed and isinstance(authority, str):
        return _signed_roster(content, authority, seen_path(node_config, node_config.get(KEY)))
    is_simulated = "data" not in node_config
    if is_simulated or node_config.get(TRUSTS_SERVER):
        if is_signed:
            raise PeerError("A signed roster needs the authority's certificate here: give --root-certificates.")
        if not is_simulated:
            _warn_once()
        return unsigned_roster(content)
    raise PeerError(
        "The server has no roster of clients' keys that the federation's authority signed, so that it could put itself "
        "between clients. Its operator makes one with `nufed certs roster`. To trust the server with that, start this "
        "client with --trust-server-roster."
    )


def own_key(node_config: Mapping[str, Any]) -> ec.EllipticCurvePrivateKey | None:
    """Return the private key that this client is admitted with; None where it has none.

    Raises:
        PeerError: the file holds no usable key.
    """
    path = node_config.get(KEY)
    return _read_key(Path(path)) if isinstance(path, str) else None


def authority_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Return the public key of a certificate authority made by `nufed certs init`.

    Raises:
        PeerError: the file holds none.
    """
    try:
        key = x509.load_pem_x509_certificate(path.read_bytes()).public_key()
    except (OSError, ValueError) as error:
        raise PeerError(f"Expected the authority's certificate at {path}, but {error}.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PeerError(f"The certificate {path} was not made by `nufed certs init`, whose authority signs rosters.")
    return key


@lru_cache(maxsize=1)
def _warn_once() -> None:
    _log.warning(
        "THE SERVER IS BELIEVED about whose keys are whose (--trust-server-roster, --insecure): it could put keys of "
        "its own among them, and see the model that secure aggregation hides"
    )


@lru_cache(maxsize=4)
def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise PeerError("This client's private key cannot be read any more; see the file that --key names.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PeerError("This client's private key is not on the curve P-384; make one with `nufed certs request`.")
    return key


def _signed_roster(content: bytes, authority: str, seen: Path | None) -> Roster:
    key = authority_key(Path(authority))
    known = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    roster = _read_roster(content, known, newest_serial(seen, known))
    if roster.expires is not None and roster.expires <= dt.datetime.now(dt.UTC):
        _read_roster.cache_clear()  # it was in force when it was read first
        roster = _read_roster(content, known, newest_serial(seen, known))
    remember_serial(seen, known, roster.serial)
    return roster


@lru_cache(maxsize=4)
def _read_roster(content: bytes, authority: bytes, known_serial: int) -> Roster:
    key = serialization.load_der_public_key(authority)
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - our own bytes
    return Roster.read(content, key, known_serial=known_serial)
