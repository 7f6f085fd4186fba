"""Messages under way between the ServerApp's grid and the nodes, from the moment they are posted until they are done.

A message's states, and what moves it on:

    posted     expect()                        it waits for its node
    taken      note_taken()                    its node has it; a node works on one message at a time
    lost       give_up_taken()                 its node asked for a message again without an answer: sent again
    answered   put_reply(), begin_upload()     (something of) a reply is there
    done       forget()                        the reply was given out, or nobody waits for it any more

Whatever comes for a message that is not expected is refused: it is late, or was never asked for.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Message

from nufed.deploy.flower_runtime.objects import get_object_id
from nufed.deploy.flower_runtime.wire import message_pb2
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network import pieces
from nufed.deploy.network.message_bytes import message_parts
from nufed.deploy.network.pieces import CutBytes
from nufed.deploy.network.reply_bounds import largest_reply
from nufed.deploy.network.uploads import Upload


@dataclass
class _Delivery:
    message: Message
    whole: bool
    largest_reply: int
    cut: CutBytes | None = None
    pieces: dict[int, bytes] = field(default_factory=dict)
    reply: Message | None = None
    upload: Upload | None = None
    held: int = 0

    @property
    def node_id(self) -> int:
        return int(self.message.metadata.dst_node_id)


class Deliveries:
    """Holds what is kept for each message; any thread may call any method.

    Attributes:
        held_bytes: of replies, from their first piece until the ServerApp has done with them.
        num_complete: replies among them that the ServerApp could take or has taken.
        on_released: called when something is let go of.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _Delivery] = {}
        self._taken: dict[int, set[str]] = {}
        self._lost: set[str] = set()
        self._answered: set[str] = set()
        self._given_out: dict[str, int] = {}
        self._complete: set[str] = set()
        self._held_by: Counter[int] = Counter()
        self.held_bytes = 0
        self.on_released: Callable[[], object] = lambda: None

    @property
    def num_complete(self) -> int:
        """How many replies the ServerApp could take or works on."""
        return len(self._complete) + len(self._given_out)

    def held_by(self, node_id: int) -> int:
        """Return the bytes that are held of a node's replies that the ServerApp has not taken."""
        return self._held_by[node_id]

    def expected_from(self, node_id: int) -> int:
        """Return the bytes of the largest reply to what a node has taken; 0 if it has taken nothing."""
        with self._lock:
            taken = (self._open.get(message_id) for message_id in self._taken.get(node_id, ()))
            return max((delivery.largest_reply for delivery in taken if delivery), default=0)

    def expect(self, message: Message, *, whole: bool) -> None:
        """Take replies to a message until `forget` is called."""
        with self._lock:
            self._open[message.metadata.message_id] = _Delivery(message, whole, largest_reply(message))

    def forget(self, message_id: str) -> None:
        """Drop what is kept for a message: it is answered or withdrawn."""
        with self._lock:
            delivery = self._open.pop(message_id, None)
            self._lost.discard(message_id)
            self._answered.discard(message_id)
            self._complete.discard(message_id)
            if delivery is None:
                return
            self._drop_taken(delivery.node_id, message_id)
            self._hold(delivery, -delivery.held)
        self.on_released()

    def note_folded(self, message_id: str) -> None:
        """Let go of the room of a reply that was taken: the ServerApp has done with it."""
        with self._lock:
            self.held_bytes -= self._given_out.pop(message_id, 0)
        self.on_released()

    def _hold(self, delivery: _Delivery, more: int) -> None:
        """Note that `more` bytes of a reply are held."""
        delivery.held += more
        self.held_bytes += more
        self._held_by[delivery.node_id] += more
        if not self._held_by[delivery.node_id]:
            del self._held_by[delivery.node_id]

    def _drop_taken(self, node_id: int, message_id: str) -> None:
        if taken := self._taken.get(node_id):
            taken.discard(message_id)
            if not taken:
                del self._taken[node_id]

    # Towards a node

    def note_taken(self, node_id: int, message_ids: Iterable[str]) -> None:
        """Note which messages a node took."""
        with self._lock:
            self._taken.setdefault(node_id, set()).update(message_ids)

    def give_up_taken(self, node_id: int) -> bool:
        """Mark what a node took and did not answer as lost; return whether there was any."""
        with self._lock:
            lost = self._taken.pop(node_id, set())
            self._lost |= lost
            return bool(lost)

    def note_left(self, node_id: int) -> None:
        """Note that a node left: what it took is looked at again."""
        with self._lock:
            self._answered |= self._taken.get(node_id, set())

    def whole_message(self, message_id: str) -> Message | None:
        """Return a message that travels whole, or None if there is none (any more)."""
        with self._lock:
            delivery = self._open.get(message_id)
            return delivery.message if delivery and delivery.whole else None

    def cut(self, message_id: str) -> CutBytes | None:
        """Return the pieces of a message that travels whole, cut at its first call; None if there is none."""
        with self._lock:
            delivery = self._open.get(message_id)
            if delivery is None or not delivery.whole:
                return None
            if delivery.cut is None:
                delivery.cut = CutBytes(message_parts(delivery.message))
            return delivery.cut

    def is_for(self, node_id: int, message_id: str) -> bool:
        """Return whether a message that is under way is a node's."""
        with self._lock:
            delivery = self._open.get(message_id)
            return delivery is not None and delivery.node_id == node_id

    def piece(self, node_id: int, message_id: str, number: int) -> bytes | None:
        """Return a piece of a message that its node took, or None if it is not that node's or was withdrawn."""
        with self._lock:
            delivery = self._open.get(message_id)
            if delivery is None or delivery.cut is None or delivery.node_id != node_id:
                return None
            cut = delivery.cut
        return cut.piece(number)

    # From a node

    def add_piece(self, node_id: int, message_id: str, number: int, content: bytes) -> bool:
        """Keep a piece of a reply, and return whether it was kept; one that comes again replaces the first."""
        with self._lock:
            delivery = self._open.get(message_id)
            if delivery is None or delivery.node_id != node_id or len(content) > pieces.PIECE_BYTES:
                return False
            if number * pieces.PIECE_BYTES + len(content) > delivery.largest_reply:
                return False
            self._hold(delivery, len(content) - len(delivery.pieces.get(number, b"")))
            delivery.pieces[number] = content
            return True

    def take_pieces(self, node_id: int, message_id: str, count: int) -> list[bytes] | None:
        """Return the pieces of a reply in their order and let go of them; None if it is not `count` of them."""
        with self._lock:
            delivery = self._open.get(message_id)
            if delivery is None or delivery.node_id != node_id:
                return None
            found, delivery.pieces = delivery.pieces, {}
            # `count` may be any number that a client thought of: nothing of that size is made.
            if len(found) != count or max(found, default=-1) != count - 1:
                self._hold(delivery, -sum(map(len, found.values())))
                return None
        return [found[number] for number in range(count)]

    def accepts(self, reply: message_pb2.Metadata, size: int) -> bool:
        """Return whether a reply of `size` bytes may come: to a message of this node's, and of its run and type."""
        with self._lock:
            delivery = self._open.get(reply.reply_to_message_id)
            if delivery is None or delivery.node_id != reply.src_node_id or size > delivery.largest_reply:
                return False
            asked = delivery.message.metadata
            return bool(reply.run_id == asked.run_id and reply.message_type == asked.message_type)

    def put_reply(self, reply: Message) -> bool:
        """Keep a reply that came whole, and return whether it was kept; the first one stands."""
        with self._lock:
            delivery = self._open.get(reply.metadata.reply_to_message_id)
            if delivery is None or delivery.node_id != reply.metadata.src_node_id:
                return False
            if delivery.reply is not None:
                return bool(delivery.reply.metadata.message_id == reply.metadata.message_id)
            delivery.reply = reply
            self._hold(delivery, headers.array_bytes(reply) - delivery.held)
            self._complete.add(reply.metadata.reply_to_message_id)
            return True

    def drop_reply(self, message_id: str) -> None:
        """Let go of a reply that Flower's state did not take."""
        with self._lock:
            if delivery := self._open.get(message_id):
                delivery.reply = None
                self._hold(delivery, -delivery.held)
                self._complete.discard(message_id)

    def take_reply(self, message_id: str) -> Message | None:
        """Return the reply to a message if it came whole."""
        with self._lock:
            delivery = self._open.get(message_id)
            if delivery is None:
                return None
            reply, delivery.reply = delivery.reply, None
            self._give_out(message_id, delivery)
            return reply

    def _give_out(self, message_id: str, delivery: _Delivery) -> None:
        """Count a reply as the ServerApp's, until it is folded."""
        held, self._given_out[message_id] = delivery.held, delivery.held
        self._complete.discard(message_id)
        self._hold(delivery, -held)
        self.held_bytes += held

    def begin_upload(self, message_id: str, reply_id: str, object_ids: Iterable[str]) -> list[str]:
        """Expect a reply as objects, and return the names of those to send; the reply that was announced first stands.

        Args:
            message_id: what it answers; names the upload as well.
            reply_id: the object that is the reply.
            object_ids: names of all its objects.
        """
        with self._lock:
            delivery = self._open.get(message_id)
            if delivery is None or delivery.reply is not None:
                return []
            if delivery.upload is None:
                delivery.upload = Upload(reply_id, object_ids, delivery.largest_reply)
            return delivery.upload.missing if delivery.upload.reply_id == reply_id else []

    def drop_upload(self, message_id: str) -> None:
        """Let go of a reply's objects, because Flower's state did not take the reply."""
        with self._lock:
            if delivery := self._open.get(message_id):
                delivery.upload = None
                self._hold(delivery, -delivery.held)

    def add_object(self, node_id: int, message_id: str, object_id: str, content: bytes) -> bool:
        """Keep an object of a node's reply to a message, and return whether it was kept."""
        is_named_rightly = get_object_id(content) == object_id  # a hash of megabytes: not under the lock
        with self._lock:
            delivery = self._open.get(message_id)
            if delivery is None or delivery.node_id != node_id or delivery.upload is None:
                return False
            if not (is_named_rightly and delivery.upload.add(object_id, content)):
                return False
            self._hold(delivery, len(content))
            if delivery.upload.is_complete:
                self._complete.add(message_id)
            return True

    def take_upload(self, message_id: str) -> Upload | None:
        """Return the objects of a reply and let go of them once all are there; None before."""
        with self._lock:
            delivery = self._open.get(message_id)
            if delivery is None or delivery.upload is None or not delivery.upload.is_complete:
                return None
            upload, delivery.upload = delivery.upload, None
            self._give_out(message_id, delivery)
            return upload

    def note_answered(self, node_id: int, message_id: str, *, is_complete: bool) -> None:
        """Note that something of a reply came; a node that sent all of it holds the message no more."""
        with self._lock:
            if message_id not in self._open:
                return
            self._answered.add(message_id)
            if is_complete:
                self._drop_taken(node_id, message_id)

    def take_answered(self) -> set[str]:
        """Return the ids of messages for which something of a reply came since the last call."""
        with self._lock:
            answered, self._answered = self._answered, set()
            return answered

    def take_lost(self) -> set[str]:
        """Return the ids of messages whose node forgot them since the last call: it died, or never got them."""
        with self._lock:
            lost, self._lost = self._lost, set()
            return lost
