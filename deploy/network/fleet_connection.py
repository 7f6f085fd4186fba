"""A client's connection to Flower's Fleet API, built on the generated stubs alone.

Flower's own client (`flwr.client.grpc_rere_client`) is gone from 1.40 on, and in 1.39 it ends the process or raises
SIGINT in it when a call fails. The stubs and the service are there up to 1.42 at least.
"""

import contextlib
import datetime as dt
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message

from nufed.common.config import Scalar
from nufed.common.untrusted import printable
from nufed.deploy.flower_runtime.objects import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from nufed.deploy.flower_runtime.wire import (
    FleetStub,
    Node,
    message_from_proto,
    message_pb2,
    message_to_proto,
    remove_content_from_message,
    run_from_proto,
    run_pb2,
)
from nufed.deploy.flower_runtime.wire import fleet_pb2 as fleet
from nufed.deploy.flower_runtime.wire import heartbeat_pb2 as heartbeat
from nufed.deploy.network import call_failures
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.call_failures import AlreadyRegistered, ConnectionLost, RunOver, ServerFinished
from nufed.deploy.network.message_bytes import message_parts, push_request
from nufed.deploy.network.pieces import MOST_PIECES, CutBytes, assemble, parse_number, piece_name
from nufed.deploy.network.server_probe import ServerAddress
from nufed.deploy.network.wakeup import Wakeup

HEARTBEAT = 3.0
"""Seconds between heartbeats while there is work; a server with many clients has those without work give fewer."""

_LONGEST_INTERVAL = 240.0

_DECLARED_INTERVAL = 10.0
"""Seconds; the shortest that Flower's service accepts. Ours counts with a shorter one."""

_MAX_MESSAGE_BYTES = 2**31 - 1
_SIGNATURE_LIFE = dt.timedelta(seconds=240)
_CALL_TIMEOUT = 60.0
_TRANSFER_TIMEOUT = 600.0
_PARALLEL_PIECES = 2


class _Signature(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Adds node authentication and the process's name to every call; one signature serves for four minutes."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, public_key: bytes, process: str) -> None:
        self._key, self._public_key, self._process = key, public_key, process
        self._signed_at = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._metadata: tuple[tuple[str, str | bytes], ...] = ()

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        now = call_failures.now()
        if not dt.timedelta(0) <= now - self._signed_at < _SIGNATURE_LIFE:
            stamp = now.isoformat()
            signature = self._key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
            self._metadata = (
                ("flwr-public-key-bin", self._public_key),
                ("flwr-timestamp", stamp),
                ("flwr-signature-bin", signature),
                (headers.SESSION, self._process),
            )
            self._signed_at = now
        return continuation(details._replace(metadata=[*(details.metadata or ()), *self._metadata]), request)


class FleetConnection:
    """Holds a node's session with a server, and sends its heartbeats.

    Args:
        server: where it is.
        key: the node's private key; with `registers`, one made for this process.
        registers: whether the node registers itself (no node keys are in use).
        name: what this client is called; with node keys, the name of its key.
        process: random name of this process, the same for each of its connections; None makes one.

    Raises:
        ConnectionLost: the server is not there (any more).
        PeerError: it refuses this node.
    """

    ANNOUNCES_WHOLE = True
    """Whether to ask for messages without Flower's objects; tests turn it off to speak as a stock client does."""

    def __init__(
        self,
        server: ServerAddress,
        key: ec.EllipticCurvePrivateKey,
        *,
        registers: bool,
        name: str,
        process: str | None = None,
    ) -> None:
        self._server, self._registers = server, registers
        self._public_key = key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
        self._channel = _open_channel(server)
        signed = grpc.intercept_channel(
            self._channel, _Signature(key, self._public_key, process or secrets.token_hex(16))
        )
        self._stub = FleetStub(signed)
        self._push_bytes = signed.unary_unary(
            "/flwr.proto.Fleet/PushMessages", response_deserializer=fleet.PushMessagesResponse.FromString
        )
        self._closing, self._working = threading.Event(), Wakeup()
        self._interval, self._asked_at, self._is_asking = HEARTBEAT, float("-inf"), False
        self._beginning = threading.Lock()  # gRPC crashes where a call begins on a channel that is being closed
        try:
            self._node, self._whole = self._join(name)
        except BaseException:
            self._channel.close()
            raise
        self._heartbeats = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        self._heartbeats.start()

    def __enter__(self) -> "FleetConnection":
        """Return the connection, which is open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave and close; a server that is gone is not waited for."""
        self._closing.set()
        self._working.notify()
        with contextlib.suppress(grpc.RpcError):
            self._stub.DeactivateNode(fleet.DeactivateNodeRequest(node_id=self._node.node_id), timeout=2)
        self.drop()

    def drop(self) -> None:
        """Close without a word."""
        with self._beginning:
            self._closing.set()
            self._working.notify()
            self._channel.close()
        self._heartbeats.join()

    @property
    def node_id(self) -> int:
        """Return the id that the server knows this node by."""
        return int(self._node.node_id)

    def receive(self) -> Message | None:
        """Return the next message with its content, or None if the server had none for a while.

        Raises:
            ServerFinished: the server closes.
            ConnectionLost, RunOver, PeerError: as for every call.
        """
        self._asked_at, self._is_asking = time.monotonic(), True
        try:
            request = fleet.PullMessagesRequest(node=self._node)
            response, metadata = self._call(self._stub.PullMessages, request, timeout=_CALL_TIMEOUT + self._interval)
        finally:
            self._is_asking = False
            self._working.notify()
        self._note_interval(metadata)
        if headers.has_header(metadata, headers.FINISHED):
            raise ServerFinished(headers.header_text(metadata, headers.FINISHED))
        if not response.messages_list:
            return None
        if text := headers.header_text(metadata, headers.PIECES):
            if (count := parse_number(text)) is None or count > MOST_PIECES:
                raise ConnectionLost(f"the server announces {printable(text)} pieces of a message")
            return self._fetch_pieces(response.messages_list[0].metadata, count)
        if not response.message_object_trees:
            return message_from_proto(response.messages_list[0])
        return self._fetch(message_from_proto(response.messages_list[0]), response.message_object_trees[0])

    def send(self, reply: Message, seconds: float) -> None:
        """Send a reply; `seconds` is what the app took for it.

        Raises:
            RunOver: the round or the run was over before it came.
            ConnectionLost, PeerError: as for every call.
        """
        if not reply.metadata.message_id:
            reply.metadata.__dict__["_message_id"] = secrets.token_hex(32) if self._whole else reply.object_id
        request = fleet.PushMessagesRequest(node=self._node, clientapp_runtime_list=[seconds])
        if self._whole:
            self._send_whole(reply, request)
            return
        with no_object_id_recompute():
            request.messages_list.append(message_to_proto(remove_content_from_message(reply)))
            request.message_object_trees.append(get_object_tree(reply))
            self._upload(reply, request)

    def run_config(self, run_id: int) -> dict[str, Scalar]:
        """Return what the server says about a run's configuration: all of it, or a stock SuperLink's overrides."""
        response, _ = self._call(self._stub.GetRun, run_pb2.GetRunRequest(node=self._node, run_id=run_id))
        return dict(run_from_proto(response.run).override_config)

    def _join(self, name: str) -> tuple[Node, bool]:
        request = fleet.ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=_DECLARED_INTERVAL)
        announced: tuple[tuple[str, str], ...] = ((headers.NAME, headers.quote_name(name)),)
        if self.ANNOUNCES_WHOLE:
            announced += ((headers.WHOLE, "1"),)
        if self._registers:
            with contextlib.suppress(AlreadyRegistered):
                self._call(self._stub.RegisterNode, fleet.RegisterNodeFleetRequest(public_key=self._public_key))
        response, metadata = self._call(self._stub.ActivateNode, request, metadata=announced)
        self._note_interval(metadata)
        return Node(node_id=response.node_id), headers.has_header(metadata, headers.WHOLE)

    def _note_interval(self, metadata: headers.Metadata) -> None:
        """Take note of how often the server wants a sign of life without work; nonsense is ignored."""
        text = headers.header_text(metadata, headers.INTERVAL)
        with contextlib.suppress(ValueError):
            self._interval = min(max(HEARTBEAT, float(text or HEARTBEAT)), _LONGEST_INTERVAL)

    def _send_whole(self, reply: Message, request: fleet.PushMessagesRequest) -> None:
        """Send a reply in one call, or its pieces and then its head."""
        announced: tuple[tuple[str, str], ...] = ((headers.WHOLE, "1"),)
        if headers.array_bytes(reply) <= headers.WHOLE_LIMIT:
            content = push_request(request, reply)
        else:
            count = self._push_pieces(reply)
            announced = (*announced, (headers.PIECES, str(count)))
            request.messages_list.append(message_to_proto(remove_content_from_message(reply)))
            content = request.SerializeToString()
        _, metadata = self._call(self._push_bytes, content, timeout=_TRANSFER_TIMEOUT, metadata=announced)
        if headers.has_header(metadata, headers.LATE):
            raise RunOver("the round was over before the reply came")

    def _push_pieces(self, reply: Message) -> int:
        """Send the pieces of a reply and return how many there are."""
        cut, metadata = CutBytes(message_parts(reply)), reply.metadata

        def push(number: int) -> None:
            name = piece_name(metadata.reply_to_message_id, number)
            part = message_pb2.PushObjectRequest(
                node=self._node, run_id=metadata.run_id, object_id=name, object_content=cut.piece(number)
            )
            response, _ = self._call(self._stub.PushObject, part, timeout=_TRANSFER_TIMEOUT)
            if not response.stored:
                raise RunOver("the round was over before the reply came")

        with ThreadPoolExecutor(_PARALLEL_PIECES) as pool:
            list(pool.map(push, range(cut.count)))
        return cut.count

    def _fetch_pieces(self, metadata: message_pb2.Metadata, count: int) -> Message:
        """Return a message that travels in pieces."""

        def pull(number: int) -> bytes:
            name = piece_name(metadata.message_id, number)
            request = message_pb2.PullObjectRequest(node=self._node, run_id=metadata.run_id, object_id=name)
            response, _ = self._call(self._stub.PullObject, request, timeout=_TRANSFER_TIMEOUT)
            if not response.object_found:
                raise RunOver("the message was withdrawn while it was fetched")
            return bytes(response.object_content)

        with ThreadPoolExecutor(_PARALLEL_PIECES) as pool:
            return message_from_proto(assemble(pool.map(pull, range(count))))

    def _fetch(self, head: Message, tree: message_pb2.ObjectTree) -> Message:
        """Return a message whose content is fetched object by object."""
        run_id = head.metadata.run_id

        def pull(object_id: str) -> bytes:
            request = message_pb2.PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
            response, _ = self._call(self._stub.PullObject, request, timeout=_TRANSFER_TIMEOUT)
            if not response.object_found:
                raise ObjectPullError(object_id, "not found")
            if not response.object_available:
                raise ObjectUnavailableError(object_id)
            return bytes(response.object_content)

        def confirm(message_id: str) -> None:
            request = message_pb2.ConfirmMessageReceivedRequest(
                node=self._node, run_id=run_id, message_object_id=message_id
            )
            self._call(self._stub.ConfirmMessageReceived, request)

        try:
            message = pull_and_inflate_object_from_tree(tree, pull, confirm, return_type=Message)
        except ObjectPullError as error:
            raise RunOver(f"the message was withdrawn while it was fetched ({error})") from error
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def _upload(self, reply: Message, request: fleet.PushMessagesRequest) -> None:
        """Announce a reply and send those of its objects that the server lacks."""
        response, _ = self._call(self._stub.PushMessages, request)
        run_id, session = reply.metadata.run_id, response.session_id

        def push(object_id: str, content: bytes) -> None:
            part = message_pb2.PushObjectRequest(
                node=self._node, run_id=run_id, object_id=object_id, object_content=content, session_id=session
            )
            stored, _ = self._call(self._stub.PushObject, part, timeout=_TRANSFER_TIMEOUT)
            if not stored.stored:
                raise ObjectPushError(object_id, run_id, session)

        wanted = set(response.objects_to_push)
        if not wanted:
            raise RunOver("the round was over before the reply came")
        try:
            push_objects(get_all_nested_objects(reply), push, object_ids_to_push=wanted)
        except ObjectPushError as error:
            raise RunOver(f"the round was over while the reply was sent ({error})") from error

    def _call(
        self,
        method: Any,
        request: Any,
        *,
        timeout: float = _CALL_TIMEOUT,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> tuple[Any, headers.Metadata]:
        """Return a call's response and the server's headers; its failure becomes one of our exceptions."""
        try:
            response, call = method.with_call(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise call_failures.explain(error, self._server) from error
        except ValueError as error:
            # grpc's answer to a call on a channel that was closed in the meantime
            raise ConnectionLost(str(error)) from error
        return response, call.initial_metadata()

    def _beat(self) -> None:
        """Tell the server that this node lives; what is wrong with the connection, the main thread finds out."""
        request = heartbeat.SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_DECLARED_INTERVAL)
        beaten_at = time.monotonic()
        while not self._closing.is_set():
            seen = self._working.count
            due = max(beaten_at, self._asked_at) + self._interval if self._is_asking else beaten_at + HEARTBEAT
            if (left := due - time.monotonic()) > 0:
                self._working.wait(seen, left)
                continue
            beaten_at = time.monotonic()
            with self._beginning:
                if self._closing.is_set():
                    return
                beat = self._stub.SendNodeHeartbeat.future(request, timeout=5)
            with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
                beat.result()


def ask_to_join(server: ServerAddress, key: ec.EllipticCurvePrivateKey, checked: str, name: str) -> headers.Metadata:
    """Return the headers that a server answers a check with; no session is opened (handshake.py).

    Args:
        server: where it is.
        key: the node's private key.
        checked: percent-encoded name that is asked about.
        name: what servers that know no checks are told, and refuse.

    Raises:
        TurnedAway: the server would not let this client in, and says why.
        ConnectionLost, PeerError: as for every call.
    """
    public_key = key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    with _open_channel(server) as channel:
        stub = FleetStub(grpc.intercept_channel(channel, _Signature(key, public_key, secrets.token_hex(16))))
        announced = ((headers.CHECK, checked), (headers.NAME, headers.quote_name(name)))
        try:
            _, call = stub.ActivateNode.with_call(
                fleet.ActivateNodeRequest(public_key=public_key), timeout=_CALL_TIMEOUT, metadata=announced
            )
            return tuple(call.initial_metadata())
        except grpc.RpcError as error:
            raise call_failures.explain(error, server) from error


def _open_channel(server: ServerAddress) -> grpc.Channel:
    options = [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),  # a connection for each client, also of several in one process
    ]
    if server.root_certificates is None:
        return grpc.insecure_channel(str(server), options)
    return grpc.secure_channel(str(server), grpc.ssl_channel_credentials(server.root_certificates), options)
