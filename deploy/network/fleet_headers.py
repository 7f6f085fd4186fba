"""What NuFed adds to Flower's Fleet API: nine gRPC headers, ignored by peers that do not know them.

A stock SuperNode takes part without them, and our client works without them on a stock SuperLink. Between our own two
ends they spare most of the round trips: a message of up to `WHOLE_LIMIT` bytes travels inside `PullMessages` and
`PushMessages` (the `content` field of Flower's own message record), and a larger one in pieces (pieces.py), instead of
as a tree of objects that are announced, hashed and fetched one by one.
"""

from collections.abc import Iterable
from urllib.parse import quote, unquote

from flwr.app import Message

Metadata = Iterable[tuple[str, str | bytes]]

WHOLE = "nufed-whole"
"""Sent by a client and answered by a server that takes and gives messages whole."""

PIECES = "nufed-pieces"
"""Sent with a message's head: the number of pieces that the message itself travels in."""

NAME = "nufed-name"
"""Sent by a client: what it is called, percent-encoded; with node keys it must be the name of its key."""

SESSION = "nufed-session"
"""Sent by a client in every call: a random name of its process, so that two of them are told apart."""

CHECK = "nufed-check"
"""Sent by a client that asks whether it would be let in, without joining: what it is called, percent-encoded; answered
with `CHECK_FREE` or `CHECK_TAKEN`."""

CHECK_FREE, CHECK_TAKEN = "free", "taken"
"""Whether nobody is connected under the name that was asked for, or somebody is."""

VERSION = "nufed-version"
"""Sent by a server that answers a check: the version of NuFed that it runs."""

LONGEST_SESSION = 64
"""Characters of a process's name that are looked at."""

INTERVAL = "nufed-interval"
"""Sent by a server to a client that joins or asks for messages: seconds between two signs of life while it has no work.
A request for messages is one."""

FINISHED = "nufed-finished"
"""Sent by a server that closes: how its run ended, a status of `nufed.server.outcome`."""

LATE = "nufed-late"
"""Sent by a server whose round was over before a client's reply came."""

WHOLE_LIMIT = 16 * 2**20
"""Bytes of arrays above which a message travels in pieces."""


TURNED_AWAY = "nufed: "
"""What the details of a refused call begin with, before the sentence that the client ends with."""

REPLACED = (
    "another process took its place under the same key or name; end the one that should not run, and give each client "
    "a key and a name of its own"
)
"""Why a process is turned away whose node another one is."""

SAME_NAME = "start it with --name of its key, or have the operator make a key of that name"
"""What helps a client that calls itself otherwise than its key."""

LONGEST_NAME = 64
"""Characters of a client's name."""


NAME_RULE = f"1 to {LONGEST_NAME} printable characters"


def is_name(text: str) -> bool:
    """Return whether a text can be a client's name."""
    return 1 <= len(text) <= LONGEST_NAME and text.isprintable()


def quote_name(name: str) -> str:
    """Return a name as a header holds it."""
    return quote(name, safe=" ")


def read_name(metadata: Metadata | None) -> str | None:
    """Return the name that a client gives itself, empty if it gives none, or None if it is no name."""
    name = _unquoted(metadata, NAME)
    return name if not name or is_name(name) else None


def read_checked_name(metadata: Metadata | None) -> str | None:
    """Return the name that a client asks about, or None if it is no name."""
    name = _unquoted(metadata, CHECK)
    return name if is_name(name) else None


def _unquoted(metadata: Metadata | None, header: str) -> str:
    return unquote(header_text(metadata, header)[: 12 * LONGEST_NAME], errors="replace")


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
