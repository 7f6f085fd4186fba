"""The roster of clients' keys that the authority has signed: made by the operator, handed out by the server."""

import datetime as dt
import json
import threading
import time
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nufed.client.secure_trust import authority_key
from nufed.common.errors import ConfigError, PeerError
from nufed.common.privacy.secure import Roster
from nufed.deploy.network.certificates import (
    ROSTER_DAYS,
    CertificateFolder,
    load_authority_key,
    read_public_key,
    write_key_file,
)

SHORT_OF_DAYS = 14
"""From when on the server warns that a roster ends."""

_DAY = 86_400.0
_RENEW = "sign a new one with `nufed certs roster`; a running server takes note by itself"
_TIME = "%Y-%m-%d %H:%M UTC"


def write_roster(
    folder: CertificateFolder, authority_key: Path | None = None, *, days: int = ROSTER_DAYS
) -> tuple[Path, Roster]:
    """Sign the names and keys of the admitted clients; return the file's path and the roster.

    Args:
        folder: of the server's certificates.
        authority_key: file of the authority's private key; None is the folder's.
        days: for how long it is believed; negative makes one that has ended.

    Raises:
        ConfigError: nobody is admitted, or the authority's private key is not here.
        PeerError: a key is unusable, or two names have one.
        RunError: the file cannot be written.
    """
    signing = authority_key or folder.authority_key
    if not signing.exists():
        raise ConfigError(
            f"Expected the authority's private key at {signing}, which signs the roster. Name the file with "
            "--authority-key, or give this command where the key is, with a copy of the server's clients/ folder and "
            f"ca.crt, and bring the server the {folder.roster.name} that is made."
        )
    paths = sorted(folder.admitted_clients.glob("*.pub"))
    if not paths:
        raise ConfigError(f"Expected admitted clients in {folder.admitted_clients}, found none. Admit them first.")
    path, keys = folder.roster, {each.stem: _public_key(each) for each in paths}
    expires = (dt.datetime.now(dt.UTC) + dt.timedelta(days=days)).replace(microsecond=0)
    roster = Roster(keys, serial=max(int(time.time()), _serial(path) + 1), expires=expires)
    write_key_file(path, roster.signed(load_authority_key(signing)))
    return path, roster


class RosterFile:
    """Holds a roster as last read, and reads the file again when it changed.

    Args:
        path: of the roster; it may be made later.
        authority: file of the certificate of the authority that signs it.
    """

    def __init__(self, path: Path, authority: Path) -> None:
        self.path, self._authority = path, authority
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._read: tuple[bytes, Roster] | None = None
        self._warned = float("-inf")

    def read(self) -> tuple[bytes, Roster] | None:
        """Return the file's content and what it says; None where there is no file.

        Raises:
            PeerError: it is not the authority's, or has expired.
        """
        with self._lock:
            try:
                status = self.path.stat()
                stamp = status.st_mtime_ns, status.st_size
                if stamp != self._stamp:
                    content = self.path.read_bytes()
                    self._read, self._stamp = (content, Roster.read(content, authority_key(self._authority))), stamp
            except FileNotFoundError:
                return None
            except OSError as error:
                raise PeerError(f"Expected a roster at {self.path} ({error.strerror}). Make it readable.") from error
            read = self._read
        if read and (end := read[1].expires) and end <= dt.datetime.now(dt.UTC):  # since it was read
            raise PeerError(f"The roster {self.path} ended on {end:{_TIME}}: {_RENEW}.")
        return read

    def warning(self) -> str | None:
        """Return, once a day, that the roster ends soon, has ended or is unusable, and what to do; else None."""
        now = time.monotonic()
        if now - self._warned < _DAY:
            return None
        try:
            read = self.read()
        except PeerError as error:
            said = f"NO SECURE SUM until this is mended: {error}"
        else:
            if read is None or not (end := read[1].expires):
                return None
            if (days := (end - dt.datetime.now(dt.UTC)).days) >= SHORT_OF_DAYS:
                return None
            said = f"the roster {self.path} ends in {days} days ({end:{_TIME}}), and no round has a sum then: {_RENEW}"
        self._warned = now
        return said

    def note(self) -> str | None:
        """Return that the file is not there, as the server says it; None if it is.

        Raises:
            PeerError: it is not the authority's, or has expired.
        """
        if self.read() is not None:
            return None
        return (
            f"NO ROSTER: secure aggregation has no {self.path}, and clients take no part without one, but those with "
            "--trust-server-roster. Make it with `nufed certs roster`; it is found while the server runs"
        )


def _public_key(path: Path) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key(read_public_key(path))
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - `read_public_key` has looked
    return key


def _serial(path: Path) -> int:
    """Return the serial number of the roster that is to be replaced; 0 where there is none."""
    try:
        return int(json.loads(json.loads(path.read_bytes())["roster"])["serial"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
