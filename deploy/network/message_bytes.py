"""Flower's message records as bytes on the wire, with one copy of each array.

Building the protobuf objects copies every array once per level of nesting (0.1 s for 5 MB). Their wire format is
simple enough to be put together here: a length-delimited field is its tag, its length and its bytes, and records that
follow each other are merged. What is read back, protobuf reads.
"""

from collections.abc import Sequence

from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from nufed.deploy.flower_runtime.wire import (
    error_to_proto,
    fleet_pb2,
    make_message,
    message_from_proto,
    message_pb2,
    metadata_to_proto,
    recorddict_pb2,
    recorddict_to_proto,
)
from nufed.deploy.flower_runtime.words import ErrorCode

_LENGTH_DELIMITED = 2


def _tag(record: type, field: str) -> bytes:
    number: int = record.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]
    return _varint(number << 3 | _LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


_PULLED = _tag(fleet_pb2.PullMessagesResponse, "messages_list")
_PUSHED = _tag(fleet_pb2.PushMessagesRequest, "messages_list")
_CONTENT = _tag(message_pb2.Message, "content")
_RECORD_ITEM = _tag(recorddict_pb2.RecordDict, "items")
_RECORD_KEY = _tag(recorddict_pb2.RecordDict.Item, "key")
_RECORD_ARRAYS = _tag(recorddict_pb2.RecordDict.Item, "array_record")
_ARRAY_ITEM = _tag(recorddict_pb2.ArrayRecord, "items")
_ARRAY_KEY = _tag(recorddict_pb2.ArrayRecord.Item, "key")
_ARRAY_VALUE = _tag(recorddict_pb2.ArrayRecord.Item, "value")
_ARRAY_DATA = _tag(recorddict_pb2.Array, "data")


def pull_response(message: Message) -> bytes:
    """Return a `PullMessagesResponse` that carries a message with its content."""
    return b"".join(_field(_PULLED, message_parts(message)))


def push_request(envelope: fleet_pb2.PushMessagesRequest, reply: Message) -> bytes:
    """Return a `PushMessagesRequest` that carries a reply with its content.

    Args:
        envelope: the request without messages.
        reply: the message.
    """
    return b"".join([envelope.SerializeToString(), *_field(_PUSHED, message_parts(reply))])


def message_parts(message: Message) -> list[bytes]:
    """Return consecutive parts of a message's record; the arrays among them are not copied."""
    # Not through Message(), which marks the metadata, shared with the stored message, as not delivered yet.
    head = message_pb2.Message(metadata=metadata_to_proto(message.metadata))
    if message.has_error():
        head.error.CopyFrom(error_to_proto(message.error))
    parts = [head.SerializeToString()]
    return parts + _field(_CONTENT, _records(message.content)) if message.has_content() else parts


def read_reply(proto: message_pb2.Message) -> Message:
    """Return a reply as Flower has it, or an error in its place if it is none."""
    try:
        return message_from_proto(proto)
    except Exception as error:  # noqa: BLE001 - whatever Flower's decoders raise on what anybody sent
        empty = message_pb2.Message(metadata=proto.metadata, content=recorddict_pb2.RecordDict())
        reason = f"the reply makes up no message ({type(error).__name__})"
        metadata = message_from_proto(empty).metadata
        return make_message(metadata, error=Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))


def _records(records: RecordDict) -> list[bytes]:
    parts: list[bytes] = []
    for key, record in records.items():
        if isinstance(record, ArrayRecord):
            name = _field(_RECORD_KEY, [key.encode()])
            parts += _field(_RECORD_ITEM, name + _field(_RECORD_ARRAYS, _arrays(record)))
        else:
            parts.append(recorddict_to_proto(RecordDict({key: record})).SerializeToString())
    return parts


def _arrays(record: ArrayRecord) -> list[bytes]:
    parts: list[bytes] = []
    for key, array in record.items():
        name = _field(_ARRAY_KEY, [key.encode()])
        parts += _field(_ARRAY_ITEM, name + _field(_ARRAY_VALUE, _array(array)))
    return parts


def _array(array: Array) -> list[bytes]:
    described = recorddict_pb2.Array(dtype=array.dtype, shape=array.shape, stype=array.stype)
    return [described.SerializeToString(), *_field(_ARRAY_DATA, [array.data])]


def _field(tag: bytes, parts: Sequence[bytes]) -> list[bytes]:
    return [tag, _varint(sum(map(len, parts))), *parts]
