"""Large messages between our own two ends: cut into pieces that travel as objects of Flower's API, without hashing.

Flower's objects are named by the hash of their content, which costs three passes over a model, and kept in a store,
which costs a copy. A piece is named `<id of the message>/<number>`.
"""

import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from flwr.proto import message_pb2

PIECE_BYTES = 4 * 2**20
"""Size of a piece: a few in flight, little memory each."""


def piece_name(message_id: str, number: int) -> str:
    """Return the name of a piece; for a reply, `message_id` is that of the message it answers."""
    return f"{message_id}/{number}"


def parse_piece_name(name: str) -> tuple[str, int] | None:
    """Return (message id, number) if an object's name is that of a piece."""
    message_id, slash, number = name.partition("/")
    return (message_id, int(number)) if slash and number.isdecimal() else None


class CutBytes:
    """Gives out pieces of what consecutive parts make up, without ever joining the parts."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = [memoryview(part) for part in parts]
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))
        size = self._ends[-1] if self._ends else 0
        self.count = -(-size // PIECE_BYTES)

    def piece(self, number: int) -> bytes:
        """Return piece `number`, counted from 0; the last one may be shorter, beyond it they are empty."""
        start, stop = number * PIECE_BYTES, (number + 1) * PIECE_BYTES
        found = []
        for index in range(bisect_right(self._ends, start), len(self._parts)):
            offset = self._ends[index] - len(self._parts[index])
            if offset >= stop:
                break
            found.append(self._parts[index][max(0, start - offset) : stop - offset])
        return b"".join(found)


def assemble(pieces: Iterable[bytes]) -> message_pb2.Message:
    """Return the message's record that pieces make up; each can be freed as the next is taken."""
    content = bytearray()
    for piece in pieces:
        content += piece
    message: message_pb2.Message = message_pb2.Message.FromString(content)
    return message


class PieceInbox:
    """Collects the pieces of replies that are on their way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: dict[str, dict[int, bytes]] = {}

    def add(self, message_id: str, number: int, content: bytes) -> None:
        """Keep a piece; one that comes again replaces the first."""
        with self._lock:
            self._pieces.setdefault(message_id, {})[number] = content

    def take(self, message_id: str, count: int) -> message_pb2.Message | None:
        """Return the message that `count` pieces make up and forget them, or None if one is missing."""
        with self._lock:
            pieces = self._pieces.pop(message_id, {})
        if pieces.keys() != set(range(count)):
            return None
        return assemble(pieces.pop(number) for number in range(count))

    def forget(self, message_id: str) -> None:
        """Drop the pieces of a reply that is not waited for any more."""
        with self._lock:
            self._pieces.pop(message_id, None)
