"""Which node keys a server admits: a folder of public keys, read again whenever it changes."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from nufed.common.errors import PeerError
from nufed.common.untrusted import printable
from nufed.deploy.network.certificates import read_public_key
from nufed.deploy.network.fleet_headers import NAME_RULE, is_name

_FILES_A_SECOND = 100
"""Files that are looked at in a second. That some came or went is seen at once, one written over after a while."""


@dataclass(frozen=True)
class KeyChange:
    """What a look into the folder found.

    Attributes:
        admitted: public keys (PEM) that are new.
        revoked: public keys that are gone.
        problems: one sentence per file that holds no usable key.
    """

    admitted: tuple[bytes, ...] = ()
    revoked: tuple[bytes, ...] = ()
    problems: tuple[str, ...] = field(default=())


class AdmittedKeys:
    """Holds the keys of a folder as last read, so that each call is checked without touching the disk.

    Raises:
        PeerError: the folder is missing, or a file in it holds no usable key.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: Mapping[bytes, str] = MappingProxyType({})
        self._signature: tuple[tuple[str, int, int], ...] = ()
        self._folder_stamp, self._look_at = (0, 0), 0.0
        if not folder.is_dir():
            raise PeerError(f"Expected a folder of client keys at {folder}. Make it with `nufed certs init`.")
        if problems := self.refresh().problems:
            raise PeerError(problems[0])

    def name_of(self, public_key: bytes) -> str | None:
        """Return the name of the client that holds this key (PEM), or None if it is not admitted."""
        return self._names.get(public_key)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the admitted public keys (PEM)."""
        return iter(self._names)

    def refresh(self) -> KeyChange:
        """Read the folder again if it changed, and return the differences."""
        stamp, now = _stamp(self._folder), time.monotonic()
        if stamp == self._folder_stamp and now < self._look_at:
            return KeyChange()
        paths = sorted(self._folder.glob("*.pub"))
        self._folder_stamp, self._look_at = stamp, now + len(paths) / _FILES_A_SECOND
        signature = tuple((path.name, *_stamp(path)) for path in paths)
        if signature == self._signature:
            return KeyChange()
        before, problems = self._names, []
        names: dict[bytes, str] = {}
        for path in paths:
            try:
                key = read_public_key(path)
            except PeerError as error:
                problems.append(str(error))
                continue
            if key in names:
                problems.append(
                    f"{printable(path.name)} holds the key of {names[key]!r}, and a key is one client's: make another "
                    "with `nufed certs request`."
                )
            elif not is_name(path.stem):
                problems.append(f"{printable(path.name)} names no client; expected {NAME_RULE} before `.pub`.")
            else:
                names[key] = path.stem
        self._names, self._signature = MappingProxyType(names), signature
        admitted = tuple(key for key in names if key not in before)
        return KeyChange(admitted, tuple(key for key in before if key not in names), tuple(problems))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
