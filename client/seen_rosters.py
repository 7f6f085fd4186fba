"""The newest roster that a client has seen of each authority, beyond restarts: an older one has keys revoked since.

The serial numbers are in a file beside what the client remembers of its examples, or beside its private key.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nufed.client.split_memory import state_path
from nufed.common.durable_file import replace_durably
from nufed.common.errors import PeerError, RunError
from nufed.common.json_text import parse_object

FORMAT = "nufed-rosters-1"
ENDING = ".rosters"
"""Behind the whole name of the file that this one lies beside."""

_log = logging.getLogger("nufed.private")
_seen: dict[tuple[Path | None, str], int] = {}
"""Highest serial number that this process has seen or read, by file and authority."""


def seen_path(node_config: Mapping[str, Any], key: object) -> Path | None:
    """Return where a client remembers rosters; None where it has no file of its own.

    Args:
        node_config: of this client.
        key: path of its private key, if it has one.
    """
    beside = state_path(node_config) or (Path(key) if isinstance(key, str) else None)
    return beside.with_name(beside.name + ENDING) if beside else None


def newest_serial(path: Path | None, authority: bytes) -> int:
    """Return the highest serial number seen of an authority, by its public key; 0 if none was.

    Raises:
        PeerError: the file is another one.
    """
    name = hashlib.sha256(authority).hexdigest()
    if (path, name) not in _seen:
        _seen[path, name] = _stored(path).get(name, 0)
    return _seen[path, name]


def remember_serial(path: Path | None, authority: bytes, serial: int) -> None:
    """Note that a roster was seen; what cannot be written is told here, and kept in this process."""
    if serial <= newest_serial(path, authority):
        return
    name = hashlib.sha256(authority).hexdigest()
    _seen[path, name] = serial
    if path is None:
        return
    content = json.dumps({FORMAT: {**_stored(path), name: serial}})
    try:
        replace_durably(path, lambda partial: _write(partial, content))
    except RunError as error:
        _log.warning("which roster is the newest is not remembered beyond this process: %s", error)


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


def _stored(path: Path | None) -> dict[str, int]:
    try:
        return {} if path is None else {name: int(serial) for name, serial in _parsed(path).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PeerError(
            f"This client cannot read which rosters it has seen, in the file that ends in {ENDING} beside its state or "
            "its private key. Delete it if revoked keys need not be feared."
        ) from error


def _parsed(path: Path) -> dict[str, Any]:
    seen = parse_object(path.read_text(encoding="utf-8"))[FORMAT]
    if not isinstance(seen, dict):
        raise TypeError(FORMAT)
    return seen
