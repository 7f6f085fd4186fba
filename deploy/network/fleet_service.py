"""Flower's Fleet gRPC service with waiting instead of polling, and with messages that travel whole.

The protocol is Flower's: a stock SuperNode connects. What is ours: `PullMessages` is held until there is a message,
which costs no thread (`fleet_gate.py`), replies wake the ServerApp, and nodes that announce it (`fleet_headers.WHOLE`)
get and send a message in one call.

The states of a node here, what each call does in it, and what the ServerApp sees of it:

    state         entered by                                  calls                                 ServerApp
    ----------    ----------------------------------------    ----------------------------------    -----------------
    unknown       (start; a key that was revoked)             refused before they are read          not there
    registered    key folder read, or RegisterNode            ActivateNode only has an effect       not there
    online        ActivateNode; a heartbeat                   all                                   asked
    busy          a message's time ran out unanswered         all; PullMessages makes it online     there, not asked
    offline       DeactivateNode; no sign of life (below)     heartbeat or ActivateNode bring it    left: its messages
                                                              back                                  are answered (error)
    turned away   the ServerApp refuses the client;           of that process: refused with the     left
                  another process took its place              sentence; a new process: as online

A sign of life is a heartbeat, a request for messages or a connection that holds one. It counts for 15 s while a node
works or its connection is gone, and for longer while it waits (`signs_of_life.py`).

A node that is online is never set offline in order to let a new process in: its messages would be answered with an
error in between. Who owns what: `Sessions` and `Deliveries` each guard what they hold with one lock and call nothing
while they hold it; Flower's state has a lock of its own; this service holds nothing that changes but whether it closes.
The ServerApp's thread alone uses `FleetGrid`.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc

from nufed.deploy.flower_runtime.state import FleetServicer, LinkStateFactory
from nufed.deploy.flower_runtime.wire import fleet_pb2 as fleet
from nufed.deploy.flower_runtime.wire import heartbeat_pb2 as heartbeat
from nufed.deploy.flower_runtime.wire import message_pb2, message_to_proto
from nufed.deploy.flower_runtime.words import (
    HEARTBEAT_MAX_INTERVAL,
    HEARTBEAT_MIN_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    PUBLIC_KEY_HEADER,
    ApiErrorCode,
    FlowerError,
    get_metadata_bytes,
)
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.calls import Call
from nufed.deploy.network.deliveries import Deliveries
from nufed.deploy.network.flower_state import is_online, online_nodes
from nufed.deploy.network.handshake import answer_check
from nufed.deploy.network.message_bytes import pull_response
from nufed.deploy.network.node_keys import AdmittedKeys
from nufed.deploy.network.pieces import parse_piece_name
from nufed.deploy.network.reply_intake import ReplyIntake
from nufed.deploy.network.sessions import Caller, Sessions
from nufed.deploy.network.signs_of_life import SignsOfLife
from nufed.deploy.network.wakeup import Wakeup

_MOST_STRANGERS = 100_000


class FleetService(FleetServicer):
    """Holds what is under way between the ServerApp's grid and the nodes.

    Args:
        states: Flower's state.
        keys: admitted node keys; None lets nodes register themselves.
        hold: seconds that a request for messages is held while there is none.
        on_event: called with a client's name and a line of text when two processes want to be one client.
    """

    def __init__(
        self,
        states: LinkStateFactory,
        *,
        keys: AdmittedKeys | None = None,
        hold: float = 10.0,
        on_event: Callable[[str, str], None] = lambda _name, _line: None,
    ) -> None:
        super().__init__(states, states.objectstore_factory, keys is not None)
        self.replies, self.nodes = Wakeup(), Wakeup()
        self.sessions = Sessions(unique_names=keys is None)
        self.deliveries = Deliveries()
        self._keys, self._hold, self._on_event = keys, hold, on_event
        self._closed, self._ending = threading.Event(), ""
        self._registered = 0
        self._joining = threading.Lock()
        self._intake = ReplyIntake(states, self.deliveries)
        self.life = SignsOfLife(states)

    # What the server and its grid ask for

    def wake(self, node_ids: Iterable[int]) -> None:
        """Let nodes that wait for a message look again."""
        for node_id in node_ids:
            self.sessions.wake(node_id)

    def admitted_name(self, node_id: int) -> str | None:
        """Return the name of a node's key, or None where no keys are in use."""
        return self.sessions.name(node_id) if self._keys is not None else None

    def turn_away(self, node_id: int, reason: str) -> bool:
        """End a client that cannot take part, with a sentence; False for a stock SuperNode, which would not hear it."""
        if not self.sessions.turn_away(node_id, reason):
            return False
        self.state_factory.state().deactivate_node(node_id)
        self.nodes.notify()
        return True

    def register(self, public_key: bytes) -> None:
        """Make an admitted key a node of Flower's, if it is none yet."""
        state = self.state_factory.state()
        with self._joining:
            if state.get_node_id_by_public_key(public_key) is not None:
                return
            self._registered += 1
            if self._keys is None and self._registered > _MOST_STRANGERS:
                raise FlowerError(ApiErrorCode.PUBLIC_KEY_NOT_VALID, "more nodes have registered than can be clients")
            state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, 0)

    def close(self, patience: float, *, ending: str) -> None:
        """Tell nodes how the run ended as they ask for messages, for at most `patience` seconds."""
        deadline = time.monotonic() + patience
        self._ending = ending
        self._closed.set()
        self.wake(self.sessions.to_be_told())
        while self.sessions.to_be_told() & self._online() and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))

    def _is_online(self, node_id: int) -> bool:
        return is_online(self.state_factory.state(), node_id)

    def _online(self) -> set[int]:
        return online_nodes(self.state_factory.state())

    # What nodes call

    def RegisterNode(  # noqa: N802 - Flower's name
        self, request: fleet.RegisterNodeFleetRequest, context: Call
    ) -> fleet.RegisterNodeFleetResponse:
        """Register a node that has no admitted key; one that comes back keeps its id."""
        if self._keys is not None:
            raise FlowerError(ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED, "node keys are in use")
        if _signer(context) != request.public_key:
            raise FlowerError(ApiErrorCode.PUBLIC_KEY_NOT_VALID, "a node registers the key that it signs with")
        self.register(request.public_key)
        return fleet.RegisterNodeFleetResponse(node_id=self._node_of(request.public_key))

    def ActivateNode(  # noqa: N802 - Flower's name
        self, request: fleet.ActivateNodeRequest, context: Call
    ) -> fleet.ActivateNodeResponse:
        """Let a node in; a new process of it replaces the one before at once, whether that was killed or still runs."""
        metadata, public_key = context.invocation_metadata(), request.public_key
        if _signer(context) != public_key or not self._admits(public_key):
            raise FlowerError(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "the key is not admitted")
        if headers.has_header(metadata, headers.CHECK):
            by_key = self._keys.name_of(public_key) if self._keys else None
            answer_check(context, by_key, lambda name: self._is_online(self.sessions.node_of(name)))
            return fleet.ActivateNodeResponse()
        if self._keys is not None:
            self.register(public_key)
        name, node_id = self._name(public_key, context), self._node_of(public_key)
        whole = headers.has_header(metadata, headers.WHOLE)
        was_online = self._is_online(node_id)
        opened = self.sessions.open(node_id, name, Caller.of(context), whole=whole)
        if opened.refusal:
            self._refuse(context, opened.refusal)
        for other in opened.displaced:
            was_online |= self.state_factory.state().deactivate_node(other)
        if opened.replaces and was_online:
            self._on_event(
                self.sessions.name(node_id),
                f"{self.sessions.name(node_id)} is connected from a new process; the one before, if it still runs, is "
                "turned away",
            )
        self._activate(request, context, node_id)
        if whole:
            self.life.note(node_id)
            context.send_initial_metadata(((headers.WHOLE, "1"), self.life.header()))
        else:
            self.deliveries.give_up_taken(node_id)
        self.nodes.notify()
        self.replies.notify()
        return fleet.ActivateNodeResponse(node_id=node_id)

    def DeactivateNode(  # noqa: N802 - Flower's name
        self, request: fleet.DeactivateNodeRequest, context: Call
    ) -> fleet.DeactivateNodeResponse:
        """Let a node go; what it had taken is answered with an error at once."""
        response = super().DeactivateNode(request, context)
        self.deliveries.note_left(request.node_id)
        self.sessions.end(request.node_id)
        self.nodes.notify()
        self.replies.notify()
        return response

    def SendNodeHeartbeat(  # noqa: N802 - Flower's name
        self, request: heartbeat.SendNodeHeartbeatRequest, context: Call
    ) -> heartbeat.SendNodeHeartbeatResponse:
        """Note that a node lives; ours are held to a shorter interval than Flower's minimum of 10 s."""
        if not self._admits(_signer(context)):
            return heartbeat.SendNodeHeartbeatResponse(success=False)
        if not self.sessions.takes_whole(request.node.node_id):
            return super().SendNodeHeartbeat(request, context)
        node_id = request.node.node_id
        known = self.life.note(node_id, is_idle=self.sessions.is_waiting(node_id))
        return heartbeat.SendNodeHeartbeatResponse(success=known)

    async def pull(
        self, request: fleet.PullMessagesRequest, call: Call, run: Callable[..., Awaitable[Any]]
    ) -> fleet.PullMessagesResponse | bytes:
        """Return a node's next message as soon as there is one, or nothing after a while.

        A request that is held is a sign of life: it ends with its connection.

        Args:
            request: which node asks.
            call: its call.
            run: calls a function that looks into Flower's state.

        Raises:
            Refused: another process took the place of this one.
        """
        node_id = request.node.node_id
        caller, signer = Caller.of(call), _signer(call)
        wakeup, number = self.sessions.begin_wait(node_id)
        is_ours, hold = self.sessions.takes_whole(node_id), self._hold
        if is_ours and self._admits(signer):  # a revoked node is not brought back by a call that was under way
            hold = max(hold, self.life.longest_hold(call.patience))
            call.send_initial_metadata((self.life.header(),))
            await run(self._note_waiting, node_id)
            call.forget_headers()
        deadline = time.monotonic() + hold
        try:
            while self._admits(signer) and self.sessions.is_newest_wait(node_id, number):
                seen = wakeup.count
                if reason := self.sessions.refusal(node_id, caller):
                    self._refuse(call, reason)
                if self._closed.is_set():
                    call.send_initial_metadata(((headers.FINISHED, self._ending),))
                    self.sessions.note_told(node_id)
                    break
                if (response := await run(self._next_message, request, call)) is not None:
                    return response  # type: ignore[no-any-return]
                if not await wakeup.wait(seen, deadline - time.monotonic()):
                    break
        except asyncio.CancelledError:
            if is_ours and self.sessions.end_wait(node_id, number):
                self.life.note_work(node_id)
            raise
        finally:
            self.sessions.end_wait(node_id, number)
        return fleet.PullMessagesResponse()

    def PushMessages(  # noqa: N802 - Flower's name
        self, request: fleet.PushMessagesRequest, context: Call
    ) -> fleet.PushMessagesResponse:
        """Take a node's reply, or the announcement of one whose objects follow."""
        if not request.messages_list:
            return fleet.PushMessagesResponse()
        response = self._intake.take(request, context)
        self.replies.notify()
        return response

    def PullObject(  # noqa: N802 - Flower's name
        self, request: message_pb2.PullObjectRequest, context: Call
    ) -> message_pb2.PullObjectResponse:
        """Return a part of a message."""
        if (name := parse_piece_name(request.object_id)) is None:
            return super().PullObject(request, context)
        self._note_transfer(request.node.node_id, context)
        content = self.deliveries.piece(request.node.node_id, *name)
        if content is None:
            return message_pb2.PullObjectResponse(object_found=False)
        return message_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def PushObject(  # noqa: N802 - Flower's name
        self,
        request: message_pb2.PushObjectRequest,
        context: Call,
    ) -> message_pb2.PushObjectResponse:
        """Take a part of a reply."""
        node_id, content = request.node.node_id, request.object_content
        self._note_transfer(node_id, context)
        if (name := parse_piece_name(request.object_id)) is not None:
            return message_pb2.PushObjectResponse(stored=self.deliveries.add_piece(node_id, *name, content))
        stored = self.deliveries.add_object(node_id, request.session_id, request.object_id, content)
        self.replies.notify()
        return message_pb2.PushObjectResponse(stored=stored)

    def ConfirmMessageReceived(  # noqa: N802 - Flower's name
        self, request: message_pb2.ConfirmMessageReceivedRequest, context: Call
    ) -> message_pb2.ConfirmMessageReceivedResponse:
        """Let go of a message's objects once its node has them; no node may do so for another."""
        if not self.deliveries.is_for(request.node.node_id, request.message_object_id):
            return message_pb2.ConfirmMessageReceivedResponse()
        return super().ConfirmMessageReceived(request, context)

    def _note_transfer(self, node_id: int, call: Call) -> None:
        """Note that a node lives which sends or takes a part of a message: its heartbeats may be queued behind that."""
        if self.sessions.takes_whole(node_id) and self._admits(_signer(call)):
            self.life.note(node_id)

    def _note_waiting(self, node_id: int) -> None:
        """Note that a node lives; what it took and did not answer is lost, for it works on one message at a time."""
        self.life.note(node_id, is_idle=True)
        if self.deliveries.give_up_taken(node_id):
            self.replies.notify()

    def _admits(self, public_key: bytes | None) -> bool:
        return self._keys is None or self._keys.name_of(public_key or b"") is not None

    def _node_of(self, public_key: bytes) -> int:
        node_id = self.state_factory.state().get_node_id_by_public_key(public_key)
        if node_id is None:
            raise FlowerError(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "the key is not registered")
        return node_id

    def _name(self, public_key: bytes, context: Call) -> str:
        """Return what a client is called: by its key if keys are in use, and it may not call itself otherwise."""
        announced = headers.read_name(context.invocation_metadata())
        if announced is None:
            self._refuse(context, f"its name is none: expected {headers.NAME_RULE}")
        by_key = self._keys.name_of(public_key) if self._keys is not None else None
        if by_key is not None and announced and announced != by_key:
            self._on_event(by_key, f"a client with the key of {by_key} called itself {announced!r} and is turned away")
            self._refuse(
                context, f"its key is that of {by_key!r}, but it calls itself {announced!r}; {headers.SAME_NAME}"
            )
        return by_key or announced or ""

    def _refuse(self, context: Call, reason: str) -> NoReturn:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, headers.TURNED_AWAY + reason)

    def _activate(self, request: fleet.ActivateNodeRequest, context: Call, node_id: int) -> None:
        """Make a node online without a moment in which it is not, if it is."""
        if not HEARTBEAT_MIN_INTERVAL <= request.heartbeat_interval <= HEARTBEAT_MAX_INTERVAL:
            raise FlowerError(ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL, "the heartbeat interval is out of bounds")
        state = self.state_factory.state()
        with self._joining:
            if self._is_online(node_id) and state.acknowledge_node_heartbeat(node_id, request.heartbeat_interval):
                return
            super().ActivateNode(request, context)

    def _next_message(
        self, request: fleet.PullMessagesRequest, context: Call
    ) -> fleet.PullMessagesResponse | bytes | None:
        """Return a response with a node's next message, already as bytes if it travels whole, or None."""
        node_id = request.node.node_id
        if not self.sessions.takes_whole(node_id):
            response = super().PullMessages(request, context)
            self.deliveries.note_taken(node_id, (message.metadata.message_id for message in response.messages_list))
            return response if response.messages_list else None
        heads = self.state_factory.state().get_message_ins(node_id=node_id, limit=1)
        if not heads:
            return None
        message_id = heads[0].metadata.message_id
        self.deliveries.note_taken(node_id, [message_id])
        message = self.deliveries.whole_message(message_id)
        self.life.note_work(node_id, headers.array_bytes(message) if message else 0)
        if message is None:
            # It was posted to another kind of client, or withdrawn just now.
            self.deliveries.give_up_taken(node_id)
            self.replies.notify()
            return None
        if headers.array_bytes(message) <= headers.WHOLE_LIMIT:
            return pull_response(message)
        if (cut := self.deliveries.cut(message_id)) is None:
            return None
        context.send_initial_metadata(((headers.PIECES, str(cut.count)),))
        return fleet.PullMessagesResponse(messages_list=[message_to_proto(heads[0])])


def _signer(context: Call) -> bytes | None:
    return get_metadata_bytes(context.invocation_metadata(), PUBLIC_KEY_HEADER)
