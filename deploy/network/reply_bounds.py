"""How many bytes a client may answer a message with, by what it was asked; a line here adds a kind of message."""

from dataclasses import dataclass

from flwr.app import Message

from nufed.common.secure_wire import is_secure
from nufed.deploy.network.fleet_headers import array_bytes

MIB = 2**20


@dataclass(frozen=True)
class ReplyBound:
    """What a reply to one type of message may hold.

    Attributes:
        records: bytes of metrics, names and everything else that is no array.
        arrays: times the bytes of the arrays that were sent.
    """

    records: int
    arrays: float = 0.0

    def of(self, message: Message) -> int:
        """Return the bytes of the largest reply to a message."""
        num_arrays = sum(len(record) for record in message.content.array_records.values())
        return self.records + int(self.arrays * (array_bytes(message) + _ARRAY_OVERHEAD * num_arrays))


_ARRAY_OVERHEAD = 512
"""Bytes of an array's name, type, shape and header, beside its numbers."""

MASKED_TRAIN = "train, under masks"

REPLY_BOUNDS: dict[str, ReplyBound] = {
    "train": ReplyBound(records=MIB, arrays=1.0),
    MASKED_TRAIN: ReplyBound(records=MIB, arrays=4.0),
    "evaluate": ReplyBound(records=8 * MIB),
    "query": ReplyBound(records=4 * MIB),
    "query.secure_shares": ReplyBound(records=8 * MIB),
    "query.secure_unmask": ReplyBound(records=8 * MIB),
}
"""By the type of the message, or what is before its first dot; an entry for the whole type goes first.

Under masks a number is an integer of 8 bytes, four times those of a half-precision one; shares are some hundred bytes
for each peer. An evaluation may report a hundred curves of 10,001 numbers; most need a few kilobytes.
"""

_OTHER = ReplyBound(records=MIB, arrays=1.0)


def largest_reply(message: Message) -> int:
    """Return the bytes of the largest reply that a message may be answered with."""
    kind = message.metadata.message_type
    if kind == "train" and is_secure(message.content):
        kind = MASKED_TRAIN
    bound = REPLY_BOUNDS.get(kind) or REPLY_BOUNDS.get(kind.partition(".")[0], _OTHER)
    return bound.of(message)
