"""Large messages between our own two ends: cut into pieces that travel as objects of Flower's API, without hashing.

Flower's objects are named by the hash of their content, which costs three passes over a model, and kept in a store,
which costs a copy. A piece is named `<id of the message>/<number>`.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from nufed.deploy.flower_runtime.wire import message_pb2

PIECE_BYTES = 4 * 2**20
"""Size of a piece: a few in flight, little memory each."""


MOST_PIECES = 100_000
"""Pieces that a client takes a message in: 400 GB."""

LONGEST_NUMBER = 9
"""Digits of a piece's number at most: 10^9 pieces are more than any message has."""


def piece_name(message_id: str, number: int) -> str:
    """Return the name of a piece; for a reply, `message_id` is that of the message it answers."""
    return f"{message_id}/{number}"


def parse_piece_name(name: str) -> tuple[str, int] | None:
    """Return (message id, number) if an object's name is that of a piece."""
    message_id, slash, number = name.partition("/")
    parsed = parse_number(number)
    return None if not slash or parsed is None else (message_id, parsed)


def parse_number(text: str) -> int | None:
    """Return a number or a count of pieces, or None if the text is not one."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER else None


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
    """Return the message's record that pieces make up, an empty one if they make up none.

    Each piece can be freed as the next is taken.
    """
    content, message = bytearray(), message_pb2.Message()
    for piece in pieces:
        content += piece
    try:
        message.MergeFromString(content)
    except DecodeError:
        return message_pb2.Message()
    return message
