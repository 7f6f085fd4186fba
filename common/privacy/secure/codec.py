"""Bytes of the protocol's messages: fields of known sizes one after the other, read strictly.

A message is `nufed`, the letter of its kind, the version, then its fields: integers of 8 bytes, big-endian; bytes and
texts with their length before them; lists with their count before them. There is one encoding of each message, so that
its hash stands for its content.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from nufed.common.errors import WireError

Item = TypeVar("Item")

VERSION = 1
LONGEST_NAME = 255
"""Characters of a client's name."""

MOST_CLIENTS = 65_536
"""Clients of one cohort."""

_INTEGER = 8
_LONGEST_FIELD = 1024  # bytes; the longest is a name of four-byte characters


def header(kind: str) -> bytes:
    """Return the first bytes of a message of a kind, a text of ASCII letters."""
    return b"nufed " + kind.encode() + bytes([VERSION])


def packed(*fields: bytes | str | int) -> bytes:
    """Return fields one after the other, each so that no other fields have the same bytes."""
    parts: list[bytes] = []
    for field in fields:
        if isinstance(field, int):
            parts.append(field.to_bytes(_INTEGER))
        else:
            content = field.encode() if isinstance(field, str) else field
            parts += (len(content).to_bytes(_INTEGER), content)
    return b"".join(parts)


def counted(items: list[bytes]) -> bytes:
    """Return packed items with their count before them."""
    return b"".join([len(items).to_bytes(_INTEGER), *items])


class Reader:
    """Holds the place in a message up to which it was read.

    Raises:
        WireError: the bytes are no message of this kind and version.
    """

    def __init__(self, content: bytes, kind: str) -> None:
        self._kind = kind
        if not isinstance(content, bytes):
            raise self.error(f"bytes, got {type(content).__name__}")
        start = header(kind)
        if content[: len(start)] != start:
            raise self.error(f"one of version {VERSION}, got other bytes")
        self._content, self._place = content, len(start)

    def error(self, what: str) -> WireError:
        """Return the error of a message that is not what it should be."""
        return WireError(
            f"Expected a secure-aggregation message {self._kind!r} of {what}. Run one version of NuFed on all machines."
        )

    def integer(self, low: int = 0, high: int = 2**62) -> int:
        """Return the next integer.

        Raises:
            WireError: it is not between `low` and `high`.
        """
        value = int.from_bytes(self._take(_INTEGER))
        if not low <= value <= high:
            raise self.error(f"integers from {low} to {high}, got {value}")
        return value

    def blob(self, size: int | tuple[int, int]) -> bytes:
        """Return the next bytes.

        Args:
            size: how many they must be, or the fewest and the most.

        Raises:
            WireError: they are not so many.
        """
        low, high = (size, size) if isinstance(size, int) else size
        length = self.integer(high=2**64)
        if not low <= length <= min(high, _LONGEST_FIELD):
            raise self.error(f"fields of {low} to {high} bytes, got {length}")
        return self._take(length)

    def name(self) -> str:
        """Return the next text, which must be able to be a client's name.

        Raises:
            WireError: it is not.
        """
        try:
            text = self.blob((1, 4 * LONGEST_NAME)).decode()
        except UnicodeDecodeError:
            raise self.error("names in UTF-8, got other bytes") from None
        if len(text) > LONGEST_NAME or not text.isprintable():
            raise self.error(f"names of 1 to {LONGEST_NAME} printable characters, got another text")
        return text

    def items(self, read: Callable[[], Item], most: int = MOST_CLIENTS) -> tuple[Item, ...]:
        """Return a list of items, each as `read` reads it.

        Raises:
            WireError: they are more than `most`, or fewer than announced.
        """
        return tuple(read() for _ in range(self.integer(high=most)))

    def ordered(self, names: tuple[str, ...]) -> None:
        """Raise WireError unless names are sorted and each there once."""
        if any(first >= second for first, second in pairwise(names)):
            raise self.error("names in order and each once, got others")

    def end(self) -> None:
        """Raise WireError unless everything was read."""
        if self._place != len(self._content):
            raise self.error(f"{self._place} bytes, got {len(self._content)}")

    def _take(self, size: int) -> bytes:
        taken = self._content[self._place : self._place + size]
        if len(taken) != size:
            raise self.error("whole fields, got one that was cut short")
        self._place += size
        return taken
