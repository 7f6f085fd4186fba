"""The ServerApp's grid on Flower's state itself: it sleeps until a reply comes."""

import logging
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence, Set

from flwr.app import Error, Message

from nufed.common.privacy.secure import Roster
from nufed.deploy.flower_runtime.objects import get_all_nested_objects, get_object_tree, no_object_id_recompute
from nufed.deploy.flower_runtime.state import LinkState
from nufed.deploy.flower_runtime.wire import NodeInfo, remove_content_from_message
from nufed.deploy.flower_runtime.words import ErrorCode, Run
from nufed.deploy.network.connections import Connections
from nufed.deploy.network.fleet_service import FleetService
from nufed.deploy.network.flower_state import num_online, online_nodes
from nufed.deploy.network.rosters import RosterFile
from nufed.deploy.run_grid import RunGrid
from nufed.strategy.exchange import Quorum

log = logging.getLogger(__name__)

_MOST_ATTEMPTS = 3
"""Times that a message is given to a client which ends or loses it each time, before the round goes on without."""

CHECK_INTERVAL = 1.0
"""Seconds between looks at the outstanding messages of nodes that have gone silent."""

_CHECK_ALL = 10.0
"""Seconds between looks at all outstanding messages, one of which may have expired."""


class FleetGrid(RunGrid):
    """Holds the messages that are under way.

    Args:
        state: Flower's state.
        run: the run that messages belong to.
        service: where nodes call.
        connections: counts what goes over the wire.

    Attributes:
        roster: file of the clients' keys that an authority signed; None without.
    """

    takes_quorum = True

    def __init__(self, state: LinkState, run: Run, service: FleetService, connections: Connections) -> None:
        super().__init__(run)
        self._state, self._service, self._connections = state, service, connections
        self._outstanding: dict[str, Message] = {}
        self._announced: dict[str, Message] = {}
        self._unsent: dict[str, Message] = {}
        self.roster: RosterFile | None = None
        self._attempts: dict[str, int] = {}
        self._lost: set[str] = set()  # of the messages under way, those whose nodes forgot them
        self._answered: set[str] = set()  # and those for which something has come
        self._checked = time.monotonic()
        self._taken = ""  # the message of the last single reply, until the next one is asked for

    def get_node_ids(self) -> list[int]:
        """Return the nodes that are connected."""
        return sorted(self._state.get_nodes(self._run.run_id))

    def node_set(self) -> set[int]:
        """Return the nodes that are connected, as a set."""
        return online_nodes(self._state)

    def get_nodes(self) -> Sequence[NodeInfo]:
        """Return what is known of the nodes that are connected."""
        return self._state.get_node_info(node_ids=self.get_node_ids())

    def busy_nodes(self) -> frozenset[int]:
        """Return the nodes that still work on a message whose time is over."""
        return self._service.sessions.busy()

    def wire_bytes(self, node_id: int) -> tuple[int, int]:
        """Return the bytes that have come from a node and gone to it so far."""
        return self._connections.traffic(node_id)

    def note_member(self, node_id: int, client_id: str) -> None:
        """Note what a node's client is called as a member of the run."""
        self._connections.rename(node_id, client_id)

    def admitted_name(self, node_id: int) -> str | None:
        """Return the name of a node's key, or None where no node keys are in use."""
        return self._service.admitted_name(node_id)

    def signed_roster(self) -> tuple[bytes, Roster] | None:
        """Return the clients' keys as an authority signed them, file and content; None where nobody did.

        Raises:
            PeerError: the file is not the authority's, or has expired.
        """
        return self.roster.read() if self.roster else None

    def turn_away(self, node_id: int, reason: str) -> bool:
        """End a client that cannot take part, with a sentence that says why; False if it cannot be told."""
        return self._service.turn_away(node_id, reason)

    def wait_for_nodes(self, count: int, timeout: float | None = None) -> bool:
        """Return whether at least `count` nodes are connected, waiting up to `timeout` seconds for them."""
        deadline = _deadline(timeout)
        while True:
            seen = self._service.nodes.count
            if num_online(self._state) >= count:
                return True
            if (left := deadline - time.monotonic()) <= 0:
                return False
            self._service.nodes.wait(seen, min(left, CHECK_INTERVAL))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids."""
        messages = list(messages)
        whole = [self._service.sessions.takes_whole(message.metadata.dst_node_id) for message in messages]
        with no_object_id_recompute():
            for message, travels_whole in zip(messages, whole, strict=True):
                message_id = message.metadata.message_id or secrets.token_hex(32)
                message.metadata.__dict__["_message_id"] = message_id if travels_whole else message.object_id
            self._store_objects([m for m, travels_whole in zip(messages, whole, strict=True) if not travels_whole])
        for message, travels_whole in zip(messages, whole, strict=True):
            self._post(message, whole=travels_whole)
        self._service.wake({message.metadata.dst_node_id for message in messages})
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that are complete; each is given out once."""
        replies = []
        for reply in self._take(set(message_ids)):
            self._service.deliveries.note_folded(reply.metadata.reply_to_message_id)
            replies.append(reply)
        return replies

    def _take(self, wanted: set[str]) -> Iterator[Message]:
        """Yield the replies to these messages that are complete, one at a time; `note_folded` is to follow for each."""
        for message_id in wanted & self._unsent.keys():
            yield self._unsent.pop(message_id)
        asked = {message_id for message_id in wanted & self._outstanding.keys() if message_id not in self._announced}
        if asked:
            for head in self._state.get_message_res(message_ids=asked, run_id=self._run.run_id):
                self._announced[head.metadata.reply_to_message_id] = head
        for message_id in wanted & self._announced.keys():
            reply = self._complete(self._announced[message_id])
            if reply is not None:
                self._withdraw([message_id])
                yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies that come within `timeout` seconds; what is unanswered then is withdrawn."""
        return list(self.stream_replies(messages, timeout=timeout))

    def stream_replies(
        self, messages: Iterable[Message], *, timeout: float | None = None, quorum: Quorum | None = None
    ) -> Iterator[Message]:
        """Yield each reply as it arrives, for at most `timeout` seconds; what is unanswered then is withdrawn.

        A withdrawn message is not worked on any more: a slow node that comes back takes the current one.

        Args:
            messages: what to send.
            timeout: seconds; None waits for ever.
            quorum: how many replies are enough, and how long the others are waited for then, counted by whoever takes
                the replies; None waits for all.
        """
        deadline = _deadline(timeout)
        waiting = set(self.push_messages(messages))
        checked = checked_all = time.monotonic()
        looked_at: set[str] = set()
        deliveries = self._service.deliveries
        try:
            while waiting:
                seen = self._service.replies.count
                self._hear()
                lost = self._lost & waiting
                self._lost -= lost
                for reply in self._take(looked_at | self._partly(waiting)):
                    message_id = reply.metadata.reply_to_message_id
                    waiting.discard(message_id)
                    try:
                        yield reply
                    finally:
                        del reply  # a model: its room is another's now
                        deliveries.note_folded(message_id)
                    if quorum is not None and quorum.is_full:
                        return
                self._answered -= waiting
                deadline = quorum.ends_by(deadline) if quorum else deadline
                self._post_again(lost)
                left = deadline - time.monotonic()
                if left <= 0 or not waiting:
                    break
                self._service.replies.wait(seen, min(left, CHECK_INTERVAL))
                looked_at = set()
                if time.monotonic() - checked >= CHECK_INTERVAL:
                    looked_at, checked = self._silent(waiting), time.monotonic()
                    if checked - checked_all >= _CHECK_ALL:
                        looked_at, checked_all = set(waiting), checked
        finally:
            for message_id in waiting & self._outstanding.keys():
                self._service.sessions.note_busy(self._outstanding[message_id].metadata.dst_node_id)
            self._withdraw(waiting)
            self._attempts.clear()

    def send_one(self, message: Message, due: int | None = None) -> None:  # noqa: ARG002 - real time has no plan
        """Send a message whose reply is asked for with `next_reply`."""
        self.push_messages([message])

    def next_reply(self, message_ids: Set[str], timeout: float) -> Message | None:
        """Return one reply to any of these messages, or None if none comes within `timeout` seconds.

        The room of the reply before is let go of: whoever asks for another has done with it.
        """
        self._service.deliveries.note_folded(self._taken)
        deadline, waiting = _deadline(timeout), set(message_ids)
        while True:
            seen, looked_at = self._service.replies.count, set[str]()
            if time.monotonic() - self._checked >= CHECK_INTERVAL:
                looked_at, self._checked = self._silent(waiting), time.monotonic()
            self._hear()
            for reply in self._take(looked_at | self._partly(waiting)):
                self._taken = reply.metadata.reply_to_message_id
                self._attempts.pop(self._taken, None)
                return reply
            self._answered -= waiting
            lost = self._lost & waiting
            self._lost -= lost
            self._post_again(lost)
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._service.replies.wait(seen, min(left, CHECK_INTERVAL))

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Take back messages that nobody waits for any more; nodes that have taken one are busy until they are back."""
        withdrawn = set(message_ids)
        for message_id in withdrawn & self._outstanding.keys():
            self._service.sessions.note_busy(self._outstanding[message_id].metadata.dst_node_id)
        self._withdraw(withdrawn)

    def _hear(self) -> None:
        """Take note of what has come of messages, whoever waits for them."""
        deliveries = self._service.deliveries
        self._lost = (self._lost | deliveries.take_lost()) & self._outstanding.keys()
        self._answered = (self._answered | deliveries.take_answered()) & self._outstanding.keys()

    def _partly(self, waiting: set[str]) -> set[str]:
        """Return those of some messages for which something has come."""
        return (self._announced.keys() | self._unsent.keys() | self._answered) & waiting

    def _silent(self, waiting: set[str]) -> set[str]:
        """Return those of some messages whose nodes are not online."""
        online = online_nodes(self._state)
        return {each for each in waiting & self._outstanding.keys() if _node_of(self._outstanding[each]) not in online}

    def _store_objects(self, messages: Sequence[Message]) -> None:
        """Store messages' objects; content that messages share is stored once."""
        if not messages:
            return
        session = self._state.start_session(self._run.run_id)
        objects, missing = {}, {}
        for message in messages:
            objects.update(get_all_nested_objects(message))
            tree = get_object_tree(message)
            missing.update(dict.fromkeys(self._state.preregister_object_tree(tree, session)))
        for object_id in missing:
            self._state.store_object(self._run.run_id, session, object_id, objects[object_id].deflate())

    def _post(self, message: Message, *, whole: bool) -> None:
        """Make a message available to its node; its objects, if any, are stored already."""
        message_id = message.metadata.message_id
        self._service.deliveries.expect(message, whole=whole)
        if self._state.store_message_ins(remove_content_from_message(message)):
            self._outstanding[message_id] = message
            return
        self._service.deliveries.forget(message_id)
        self._refuse(message_id, message, f"node {message.metadata.dst_node_id} is not registered")

    def _refuse(self, message_id: str, message: Message, reason: str) -> None:
        """Answer a message in place of its node."""
        message.metadata.__dict__["_message_id"] = message_id
        self._unsent[message_id] = Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message)

    def _post_again(self, message_ids: set[str]) -> None:
        """Send messages again, under their old ids, to nodes that came back without them."""
        for message_id in message_ids & self._outstanding.keys():
            message = self._outstanding[message_id]
            self._withdraw([message_id])
            message.metadata.delivered_at = ""
            self._attempts[message_id] = attempts = self._attempts.get(message_id, 1) + 1
            if attempts > _MOST_ATTEMPTS:
                self._refuse(message_id, message, f"its client took it {_MOST_ATTEMPTS} times and never answered")
                continue
            log.info("%s came back: its message is sent again", self._service.sessions.name(_node_of(message)))
            if self.push_messages([message]) != [message_id]:
                self._withdraw([message.metadata.message_id])
                self._refuse(message_id, message, "its node came back as another kind of client")

    def _complete(self, head: Message) -> Message | None:
        """Return a reply with its content, or None while that is still on its way."""
        if head.has_error():
            return head
        whole = self._service.deliveries.take_reply(head.metadata.reply_to_message_id)
        if whole is not None:
            return whole
        upload = self._service.deliveries.take_upload(head.metadata.reply_to_message_id)
        return upload.message(head) if upload else None

    def _withdraw(self, message_ids: Iterable[str]) -> None:
        """Forget messages and whatever has arrived of their replies."""
        message_ids = set(message_ids)
        self._state.delete_messages(message_ins_ids=message_ids)
        for message_id in message_ids:
            self._state.object_store.delete(message_id)
            self._announced.pop(message_id, None)
            if self._outstanding.pop(message_id, None) is not None:
                self._service.deliveries.forget(message_id)


def _node_of(message: Message) -> int:
    return int(message.metadata.dst_node_id)


def _deadline(timeout: float | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + timeout
