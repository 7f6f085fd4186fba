"""Flower's Fleet gRPC service with waiting instead of polling, and with messages that travel whole.

The protocol is Flower's: a stock SuperNode connects. What is ours: `PullMessages` is held until there is a message,
replies wake the ServerApp, and nodes that announce it (`fleet_headers.WHOLE`) get and send a message in one call.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import PUBLIC_KEY_HEADER, Status
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import heartbeat_pb2 as heartbeat
from flwr.proto import message_pb2
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.utils import check_abort
from flwr.supercore.constant import NodeStatus
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.utils import get_metadata_bytes

from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.message_bytes import message_parts, pull_response
from nufed.deploy.network.node_keys import AdmittedKeys
from nufed.deploy.network.pieces import PIECE_BYTES, CutBytes, PieceInbox, parse_piece_name
from nufed.deploy.network.wakeup import Bell

LIVENESS_INTERVAL = 7.5
"""Seconds; Flower takes a node for gone after two intervals without a heartbeat (our clients send one every 3 s)."""

_REMEMBERED_UPLOADS = 4096
_LARGEST_GROWTH, _LARGEST_SMALL_REPLY = 4, 256 * 2**20


class FleetService(FleetServicer):
    """Holds what is under way between the ServerApp's grid and the nodes.

    Args:
        states: Flower's state.
        keys: admitted node keys; None lets nodes register themselves.
        hold: seconds that a request for messages is held while there is none.
    """

    def __init__(self, states: LinkStateFactory, *, keys: AdmittedKeys | None = None, hold: float = 10.0) -> None:
        super().__init__(states, states.objectstore_factory, keys is not None)
        self.replies, self.nodes = Bell(), Bell()
        self.names: dict[int, str] = {}
        self._keys, self._hold, self._closed = keys, hold, False
        self._lock = threading.Lock()
        self._bells: defaultdict[int, Bell] = defaultdict(Bell)
        self._whole_nodes: set[int] = set()
        self._told: set[int] = set()
        self._expected: dict[str, Message | None] = {}
        self._inbox: dict[str, Message] = {}
        self._cut: dict[str, CutBytes] = {}
        self._pieces, self._assembling = PieceInbox(), threading.Lock()
        self._taken: defaultdict[int, set[str]] = defaultdict(set)
        self._lost: set[str] = set()
        self._uploads: dict[str, str] = {}
        self._completed_uploads: deque[str] = deque(maxlen=_REMEMBERED_UPLOADS)
        self._answered: set[str] = set()

    # What the grid asks for

    def takes_whole(self, node_id: int) -> bool:
        """Return whether a node takes messages whole."""
        return node_id in self._whole_nodes

    def expect(self, message: Message, *, whole: bool) -> None:
        """Take replies to a message until `forget` is called; keep its content if it is to travel whole."""
        self._expected[message.metadata.message_id] = message if whole else None

    def wake(self, node_ids: Iterable[int]) -> None:
        """Let nodes that wait for a message look again."""
        for node_id in node_ids:
            self._bell(node_id).ring()

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

    def complete_upload(self, message_id: str) -> None:
        """Note that the reply to a message is there, some of it perhaps from a client whose content is the same."""
        with self._lock:
            if (session := self._uploads.pop(message_id, None)) is not None:
                self._completed_uploads.append(session)

    def take_reply(self, reply_id: str) -> Message | None:
        """Return a reply that came whole."""
        return self._inbox.pop(reply_id, None)

    def forget(self, message: Message) -> None:
        """Drop what is kept for a message: it is answered or withdrawn."""
        message_id = message.metadata.message_id
        self._pieces.forget(message_id)
        with self._lock:
            self._expected.pop(message_id, None)
            self._cut.pop(message_id, None)
            self._uploads.pop(message_id, None)
            self._taken[message.metadata.dst_node_id].discard(message_id)
            self._lost.discard(message_id)
            stale = [key for key, reply in self._inbox.items() if reply.metadata.reply_to_message_id == message_id]
            for key in stale:
                del self._inbox[key]

    def close(self, patience: float) -> None:
        """Tell nodes that the run is over as they ask for messages, for at most `patience` seconds."""
        deadline = time.monotonic() + patience
        with self._lock:
            self._closed = True
            waiting = set(self._whole_nodes)
        self.wake(waiting)
        while waiting & self._online() - self._told and (left := deadline - time.monotonic()) > 0:
            self.nodes.wait(self.nodes.count, min(left, 0.1))

    def _online(self) -> set[int]:
        return {node.node_id for node in self.state_factory.state().get_node_info(statuses=[NodeStatus.ONLINE])}

    # What nodes call

    def RegisterNode(  # noqa: N802 - Flower's name
        self, request: fleet.RegisterNodeFleetRequest, context: grpc.ServicerContext
    ) -> fleet.RegisterNodeFleetResponse:
        """Register a node that has no admitted key; one that comes back keeps its id."""
        if not self.enable_supernode_auth and _signer(context) == request.public_key:
            node_id = self.state_factory.state().get_node_id_by_public_key(request.public_key)
            if node_id is not None:
                return fleet.RegisterNodeFleetResponse(node_id=node_id)
        return super().RegisterNode(request, context)

    def ActivateNode(  # noqa: N802 - Flower's name
        self, request: fleet.ActivateNodeRequest, context: grpc.ServicerContext
    ) -> fleet.ActivateNodeResponse:
        """Let a node in; one that was killed and came back replaces its old session at once."""
        state, metadata = self.state_factory.state(), context.invocation_metadata()
        if _signer(context) != request.public_key or not self._admits(request.public_key):
            raise FlowerError(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "the key is not admitted")
        node_id = state.get_node_id_by_public_key(request.public_key)
        if node_id is not None:
            state.deactivate_node(node_id)
        response = super().ActivateNode(request, context)
        node_id = response.node_id
        whole = headers.has_header(metadata, headers.WHOLE)
        with self._lock:
            (self._whole_nodes.add if whole else self._whole_nodes.discard)(node_id)
            self.names[node_id] = self._name(request.public_key, headers.header_text(metadata, headers.NAME), node_id)
            if not whole:
                self._lost |= self._taken.pop(node_id, set())
        if whole:
            state.acknowledge_node_heartbeat(node_id, LIVENESS_INTERVAL)
            context.send_initial_metadata(((headers.WHOLE, "1"),))
        self.nodes.ring()
        self.replies.ring()
        return response

    def DeactivateNode(  # noqa: N802 - Flower's name
        self, request: fleet.DeactivateNodeRequest, context: grpc.ServicerContext
    ) -> fleet.DeactivateNodeResponse:
        """Let a node go; what it had taken is answered with an error at once."""
        response = super().DeactivateNode(request, context)
        with self._lock:
            self._answered |= self._taken[request.node_id]
        self.nodes.ring()
        self.replies.ring()
        return response

    def SendNodeHeartbeat(  # noqa: N802 - Flower's name
        self, request: heartbeat.SendNodeHeartbeatRequest, context: grpc.ServicerContext
    ) -> heartbeat.SendNodeHeartbeatResponse:
        """Note that a node lives; ours are held to a shorter interval than Flower's minimum of 10 s."""
        if not self.takes_whole(request.node.node_id):
            return super().SendNodeHeartbeat(request, context)
        state = self.state_factory.state()
        known = state.acknowledge_node_heartbeat(request.node.node_id, LIVENESS_INTERVAL)
        return heartbeat.SendNodeHeartbeatResponse(success=known)

    def PullMessages(  # type: ignore[override]  # noqa: N802 - Flower's name; bytes pass through `RawResponses`
        self, request: fleet.PullMessagesRequest, context: grpc.ServicerContext
    ) -> fleet.PullMessagesResponse | bytes:
        """Return a node's next message as soon as there is one, or nothing after `hold` seconds."""
        node_id, deadline = request.node.node_id, time.monotonic() + self._hold
        bell = self._bell(node_id)
        if self.takes_whole(node_id):
            self._give_up_taken(node_id)
        while context.is_active() and self._admits(_signer(context)):
            seen = bell.count
            if self._closed:
                context.send_initial_metadata(((headers.FINISHED, "1"),))
                self._told.add(node_id)
                self.nodes.ring()
                return fleet.PullMessagesResponse()
            if (response := self._next_message(request, context)) is not None:
                return response
            if not bell.wait(seen, max(0.0, deadline - time.monotonic())):
                break
        return fleet.PullMessagesResponse()

    def PushMessages(  # noqa: N802 - Flower's name
        self, request: fleet.PushMessagesRequest, context: grpc.ServicerContext
    ) -> fleet.PushMessagesResponse:
        """Take a node's reply, or the announcement of one whose objects follow."""
        if not request.messages_list:
            return fleet.PushMessagesResponse()
        metadata, node_id = request.messages_list[0].metadata, request.node.node_id
        if metadata.src_node_id != node_id:
            raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, "a node may answer for itself only")
        if headers.has_header(context.invocation_metadata(), headers.WHOLE):
            response = self._take_whole(request, context)
        else:
            response = super().PushMessages(request, context)
            self._uploads[metadata.reply_to_message_id] = response.session_id
        with self._lock:
            if not response.objects_to_push:
                self._taken[node_id].discard(metadata.reply_to_message_id)
            self._answered.add(metadata.reply_to_message_id)
        self.replies.ring()
        return response

    def PullObject(  # noqa: N802 - Flower's name
        self, request: message_pb2.PullObjectRequest, context: grpc.ServicerContext
    ) -> message_pb2.PullObjectResponse:
        """Return a part of a message."""
        if (name := parse_piece_name(request.object_id)) is None:
            return super().PullObject(request, context)
        message, cut = self._expected.get(name[0]), self._cut.get(name[0])
        if message is None or cut is None or message.metadata.dst_node_id != request.node.node_id:
            return message_pb2.PullObjectResponse(object_found=False)
        content = cut.piece(name[1])
        return message_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def PushObject(  # noqa: N802 - Flower's name
        self, request: message_pb2.PushObjectRequest, context: grpc.ServicerContext
    ) -> message_pb2.PushObjectResponse:
        """Take a part of a reply; one that the same content from another client made superfluous is dropped."""
        if (name := parse_piece_name(request.object_id)) is not None:
            return message_pb2.PushObjectResponse(stored=self._take_piece(request, *name))
        if request.session_id in self._completed_uploads:
            return message_pb2.PushObjectResponse(stored=True)
        response = super().PushObject(request, context)
        self.replies.ring()
        return response

    def _admits(self, public_key: bytes | None) -> bool:
        return self._keys is None or self._keys.name_of(public_key or b"") is not None

    def _name(self, public_key: bytes, announced: str, node_id: int) -> str:
        by_key = self._keys.name_of(public_key) if self._keys is not None else None
        return by_key or announced or f"node-{node_id}"

    def _bell(self, node_id: int) -> Bell:
        with self._lock:
            return self._bells[node_id]

    def _give_up_taken(self, node_id: int) -> None:
        """Mark what a node took as lost: it works on one message at a time, so asking again means that."""
        with self._lock:
            lost = self._taken.pop(node_id, None)
            if not lost:
                return
            self._lost |= lost
        self.replies.ring()

    def _next_message(
        self, request: fleet.PullMessagesRequest, context: grpc.ServicerContext
    ) -> fleet.PullMessagesResponse | bytes | None:
        """Return a response with a node's next message, already as bytes if it travels whole, or None."""
        node_id = request.node.node_id
        if not self.takes_whole(node_id):
            response = super().PullMessages(request, context)
            self._note_taken(node_id, (message.metadata.message_id for message in response.messages_list))
            return response if response.messages_list else None
        heads = self.state_factory.state().get_message_ins(node_id=node_id, limit=1)
        if not heads:
            return None
        message_id = heads[0].metadata.message_id
        self._note_taken(node_id, [message_id])
        message = self._expected.get(message_id)
        if message is None:
            return None
        if headers.array_bytes(message) <= headers.WHOLE_LIMIT:
            return pull_response(message)
        self._cut[message_id] = CutBytes(message_parts(message))
        context.send_initial_metadata(((headers.PIECES, str(self._cut[message_id].count)),))
        return fleet.PullMessagesResponse(messages_list=[message_to_proto(heads[0])])

    def _note_taken(self, node_id: int, message_ids: Iterable[str]) -> None:
        with self._lock:
            self._taken[node_id].update(message_ids)

    def _take_piece(self, request: message_pb2.PushObjectRequest, message_id: str, number: int) -> bool:
        """Return whether a piece of a reply was kept; a node may send a few times what it was sent, to its message."""
        message = self._expected.get(message_id)
        if message is None or message.metadata.dst_node_id != request.node.node_id:
            return False
        allowed = _LARGEST_GROWTH * headers.array_bytes(message) + _LARGEST_SMALL_REPLY
        if (number + 1) * PIECE_BYTES > allowed or len(request.object_content) > PIECE_BYTES:
            return False
        self._pieces.add(message_id, number, request.object_content)
        return True

    def _assemble(self, head: message_pb2.Message, count: int) -> Message | None:
        """Return a reply that came in pieces, or None if some are missing; one at a time, for the memory it takes."""
        with self._assembling:
            if (proto := self._pieces.take(head.metadata.reply_to_message_id, count)) is None:
                return None
            proto.metadata.CopyFrom(head.metadata)
            return message_from_proto(proto)

    def _take_whole(
        self, request: fleet.PushMessagesRequest, context: grpc.ServicerContext
    ) -> fleet.PushMessagesResponse:
        head = request.messages_list[0]
        if count := headers.header_text(context.invocation_metadata(), headers.PIECES):
            reply = self._assemble(head, int(count))
        else:
            reply = message_from_proto(head)
        if reply is None:
            context.send_initial_metadata(((headers.LATE, "1"),))
            return fleet.PushMessagesResponse()
        state, reply_id, run_id = self.state_factory.state(), reply.metadata.message_id, reply.metadata.run_id
        if reason := check_abort(run_id, [Status.PENDING, Status.STARTING, Status.FINISHED], state):
            raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, reason)
        self._inbox[reply_id] = reply
        wanted = reply.metadata.reply_to_message_id in self._expected
        if not wanted or state.store_message_res(remove_content_from_message(reply)) is None:
            self._inbox.pop(reply_id, None)
            context.send_initial_metadata(((headers.LATE, "1"),))
        return fleet.PushMessagesResponse(results={reply_id: 0})


class RawResponses(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets `PullMessages` answer with bytes; belongs innermost."""

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        """Replace what turns the response into bytes."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method != "/flwr.proto.Fleet/PullMessages":
            return handler
        return grpc.unary_unary_rpc_method_handler(handler.unary_unary, handler.request_deserializer, _as_bytes)


def _as_bytes(response: fleet.PullMessagesResponse | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _signer(context: grpc.ServicerContext) -> bytes | None:
    return get_metadata_bytes(context.invocation_metadata(), PUBLIC_KEY_HEADER)
