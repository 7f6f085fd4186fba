"""Replies of stock SuperNodes, which travel as objects named by the hash of their content: kept, checked, put together.

Flower keeps them in the store that outgoing messages are in, by names that a node announces before it has sent what
they stand for. There one node's announcement decides what another node's object consists of, and a tree of a few
kilobytes that repeats its branches unfolds without end. Here each message has an upload of its own, which ends with it.
"""

import json
from collections.abc import Iterable, Iterator

from flwr.app import Array, Error, Message

from nufed.deploy.flower_runtime.objects import (
    get_object_body,
    get_object_head_values_from_object_content,
    inflate_object_from_contents,
    is_valid_sha256_hash,
    iterate_object_tree,
)
from nufed.deploy.flower_runtime.wire import PushMessagesRequest, RecordDict, make_message
from nufed.deploy.flower_runtime.words import ErrorCode
from nufed.deploy.network.message_bytes import read_reply

_LARGEST_TREE = 12 * 2**20
"""Bytes of the names of a reply's objects: some 100,000 of them."""


class Upload:
    """Holds the objects of one reply while they come; its owner guards it with a lock.

    Attributes:
        reply_id: name of the object that is the reply itself.
    """

    def __init__(self, reply_id: str, object_ids: Iterable[str], largest: int) -> None:
        """Expect objects.

        Args:
            reply_id: one of them, the reply itself.
            object_ids: their names.
            largest: bytes of all of them together, and of the arrays that they make up.
        """
        self.reply_id = reply_id
        self._missing = set(object_ids)
        self._contents: dict[str, bytes] = {}
        self._left = self._largest = largest

    @property
    def missing(self) -> list[str]:
        """Names of the objects that have not come yet."""
        return sorted(self._missing)

    @property
    def is_complete(self) -> bool:
        """Whether all objects have come."""
        return not self._missing

    def add(self, object_id: str, content: bytes) -> bool:
        """Keep an object whose content was compared with its name; return whether it is awaited and not too large."""
        if object_id not in self._missing or len(content) > self._left:
            return False
        self._missing.discard(object_id)
        self._contents[object_id] = content
        self._left -= len(content)
        return True

    def message(self, head: Message) -> Message:
        """Return the reply that the objects make up, or an error in its place if they make up none.

        Args:
            head: the reply without its content. What it says of sender and message was checked; what the objects say
                was not, and is left out.
        """
        try:
            reply = self._inflated()
            if reply.has_error():
                return make_message(head.metadata, error=reply.error)
            return make_message(head.metadata, content=reply.content)
        except Exception as error:  # noqa: BLE001 - whatever Flower's decoders raise on what anybody sent
            reason = f"the reply's objects make up no message ({type(error).__name__})"
            return make_message(head.metadata, error=Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))

    def _inflated(self) -> Message:
        if sum(_array_sizes(self._contents)) > self._largest:
            raise ValueError("its arrays are too large")
        reply = inflate_object_from_contents(self.reply_id, self._contents)
        if not isinstance(reply, Message):
            raise TypeError("it is another object")
        return reply


def read_announcement(request: PushMessagesRequest) -> tuple[Message, set[str]] | None:
    """Return a reply without its content and the names of its objects, or None if it is not one reply and its tree."""
    head, trees = request.messages_list[0], request.message_object_trees
    if len(trees) != 1 or trees[0].ByteSize() > _LARGEST_TREE or trees[0].object_id != head.metadata.message_id:
        return None
    object_ids = {node.object_id for node in iterate_object_tree(trees[0])}
    if not all(map(is_valid_sha256_hash, object_ids)):
        return None
    if not head.HasField("error"):
        head.content.CopyFrom(RecordDict())
    return read_reply(head), object_ids


def _array_sizes(contents: dict[str, bytes]) -> Iterator[int]:
    """Yield the bytes of each array once it is put together: one that repeats a chunk is larger than what was sent."""
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            chunks = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            yield sum(len(contents[children[index]]) for index in chunks)
