"""What NuFed adds to Flower's Fleet API: five gRPC headers, ignored by peers that do not know them.

A stock SuperNode takes part without them, and our client works without them on a stock SuperLink. Between our own two
ends they spare most of the round trips: a message of up to `WHOLE_LIMIT` bytes travels inside `PullMessages` and
`PushMessages` (the `content` field of Flower's own message record), and a larger one in pieces (pieces.py), instead of
as a tree of objects that are announced, hashed and fetched one by one.
"""

from collections.abc import Iterable

from flwr.app import Message

Metadata = Iterable[tuple[str, str | bytes]]

WHOLE = "nufed-whole"
"""Sent by a client and answered by a server that takes and gives messages whole."""

PIECES = "nufed-pieces"
"""Sent with a message's head: the number of pieces that the message itself travels in."""

NAME = "nufed-name"
"""Sent by a client: the name to show for it where no key names it."""

FINISHED = "nufed-finished"
"""Sent by a server that closes because its run is over."""

LATE = "nufed-late"
"""Sent by a server whose round was over before a client's reply came."""

WHOLE_LIMIT = 16 * 2**20
"""Bytes of arrays above which a message travels in pieces."""


def has_header(metadata: Metadata | None, header: str) -> bool:
    """Return whether a header is among a call's metadata."""
    return any(key == header for key, _ in metadata or ())


def header_text(metadata: Metadata | None, header: str) -> str:
    """Return a header's text, or an empty one."""
    return next((str(value) for key, value in metadata or () if key == header), "")


def array_bytes(message: Message) -> int:
    """Return the size of a message's arrays in bytes."""
    if not message.has_content():
        return 0
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
