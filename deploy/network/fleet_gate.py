"""What stands between gRPC and the Fleet API: who calls, how much it may send, and how much is held at a time.

Every call is taken as a stream of one request, because gRPC then leaves the request on its connection until it is asked
for: who is refused by its headers has none of it read, and who has to wait for room waits with it in its own memory.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from nufed.deploy.flower_runtime.wire import fab_pb2, heartbeat_pb2, message_pb2, run_pb2
from nufed.deploy.flower_runtime.wire import fleet_pb2 as fleet
from nufed.deploy.flower_runtime.words import rpc_error_translator
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.calls import Call, Refused
from nufed.deploy.network.connections import Connections
from nufed.deploy.network.fleet_service import FleetService
from nufed.deploy.network.inflow import Inflow, Outflow
from nufed.deploy.network.node_auth import NodeAuth
from nufed.deploy.network.pieces import PIECE_BYTES
from nufed.deploy.network.refusals import Refusals

FLEET = "flwr.proto.Fleet"
LARGEST_REQUEST = headers.WHOLE_LIMIT + 16 * 2**20
"""Bytes of the largest request: a message that travels whole, its arrays' names, and its other records."""

_LARGEST_QUESTION = 64 * 2**10
_LARGEST_OBJECT = 8 * 2**20
_SLOWEST_QUESTION, _SLOWEST_CONTENT = 20.0, 600.0
"""Seconds that a request has to come."""

_SMALL = 2**20
_WORKERS = 4


@dataclass(frozen=True)
class _Method:
    """How the requests of a method are read.

    Attributes:
        request: their record.
        largest: bytes.
        has_content: whether they hold (parts of) a reply.
        is_heavy: whether answering takes long enough to be done beside the loop.
    """

    request: Any
    largest: int = _LARGEST_QUESTION
    has_content: bool = False
    is_heavy: bool = False


_METHODS = {
    "RegisterNode": _Method(fleet.RegisterNodeFleetRequest),
    "ActivateNode": _Method(fleet.ActivateNodeRequest),
    "DeactivateNode": _Method(fleet.DeactivateNodeRequest),
    "UnregisterNode": _Method(fleet.UnregisterNodeFleetRequest),
    "SendNodeHeartbeat": _Method(heartbeat_pb2.SendNodeHeartbeatRequest),
    "PullMessages": _Method(fleet.PullMessagesRequest),
    "PushMessages": _Method(fleet.PushMessagesRequest, LARGEST_REQUEST, has_content=True, is_heavy=True),
    "GetRun": _Method(run_pb2.GetRunRequest),
    "GetFab": _Method(fab_pb2.GetFabRequest),
    "PushObject": _Method(message_pb2.PushObjectRequest, _LARGEST_OBJECT, has_content=True, is_heavy=True),
    "PullObject": _Method(message_pb2.PullObjectRequest),
    "ConfirmMessageReceived": _Method(message_pb2.ConfirmMessageReceivedRequest),
}


class FleetGate(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Takes the calls of Flower's Fleet API on the network's loop.

    Args:
        service: answers them.
        auth: knows who may call.
        connections: takes note of calls that are answered.
        refusals: told of those that are not.
        is_blocking: whether Flower's state waits for a disk, so that no call is answered on the loop itself.
    """

    def __init__(
        self,
        service: FleetService,
        auth: NodeAuth,
        connections: Connections,
        refusals: Refusals,
        *,
        is_blocking: bool,
    ) -> None:
        self._service, self._auth = service, auth
        self._connections, self._refusals, self._is_blocking = connections, refusals, is_blocking
        self._inflow, self._outflow = Inflow(service.deliveries), Outflow()
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="fleet")
        self._handlers = {name: self._handler(name, method) for name, method in _METHODS.items()}

    def close(self) -> None:
        """Let go of the threads."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return what takes a call; of calls that are not Flower's, one that refuses them."""
        service, _, method = details.method.removeprefix("/").partition("/")
        if service == FLEET and method in self._handlers:
            return self._handlers[method]
        return grpc.stream_unary_rpc_method_handler(self._refuse_unknown)

    async def _refuse_unknown(self, _requests: object, context: grpc.aio.ServicerContext) -> None:
        self._refusals.add("calls of methods that there are not")
        await self._refusals.slow_down()
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    def _handler(self, name: str, method: _Method) -> grpc.RpcMethodHandler:
        async def take(_requests: object, context: grpc.aio.ServicerContext) -> bytes:
            call = Call(context.invocation_metadata() or (), context.peer(), context.time_remaining())
            try:
                response = await self._answer(name, method, call, context)
            except Refused as refused:
                if refused.code is grpc.StatusCode.UNAUTHENTICATED:
                    await self._refusals.slow_down()
                await context.abort(refused.code, refused.details)
                raise AssertionError("abort raises") from refused
            if call.sent:
                await context.send_initial_metadata(call.sent)
            return response

        return grpc.stream_unary_rpc_method_handler(take)

    async def _answer(self, name: str, method: _Method, call: Call, context: grpc.aio.ServicerContext) -> bytes:
        signer = self._auth.signer(name, call)
        async with self._room(method, signer, call):
            content = await self._read(name, method, context)
            try:
                request = method.request.FromString(content)
            except DecodeError:
                self._refusals.add("calls that make up no request")
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"no {name} request") from None
            node_id = self._auth.check_node(name, request, signer, call)
            if node_id:
                self._connections.note_request(node_id, name, len(content))
            is_large = len(content) > _SMALL or headers.has_header(call.invocation_metadata(), headers.PIECES)
            del content
            run = self._run_beside if self._is_blocking or (method.is_heavy and is_large) else _run_here
            if name == "PullObject":
                await self._send_later(PIECE_BYTES, context)
            response, is_message = await self._respond(name, request, call, run)
        if name == "PullMessages" and len(response) > _SMALL:
            await self._send_later(len(response), context)
        if node_id:
            self._connections.note_response(node_id, name, len(response), is_message=is_message)
        return response

    async def _respond(
        self, name: str, request: Any, call: Call, run: Callable[..., Awaitable[Any]]
    ) -> tuple[bytes, bool]:
        """Return a response as bytes, and whether it holds a message for the node."""
        if name == "PullMessages":
            response = await self._service.pull(request, call, run)
            if isinstance(response, bytes):
                return response, True
            return response.SerializeToString(), bool(response.messages_list)

        def answer() -> bytes:
            with rpc_error_translator(call, name):
                answered: bytes = getattr(self._service, name)(request, call).SerializeToString()
                return answered

        return await run(answer), False

    def _room(self, method: _Method, signer: bytes, call: Call) -> AbstractAsyncContextManager[None]:
        """Return the room that a request takes: known before it is read, from what its node was asked."""
        if not method.has_content:
            return nullcontext()
        node_id = self._service.state_factory.state().get_node_id_by_public_key(signer) or 0
        expected = self._service.deliveries.expected_from(node_id)
        if method.request is message_pb2.PushObjectRequest:
            return self._inflow.room(node_id, min(_LARGEST_OBJECT, expected))
        metadata = call.invocation_metadata()
        is_whole = headers.has_header(metadata, headers.WHOLE) and not headers.has_header(metadata, headers.PIECES)
        return self._inflow.room(node_id, min(LARGEST_REQUEST, expected)) if is_whole else nullcontext()

    async def _read(self, name: str, method: _Method, context: grpc.aio.ServicerContext) -> bytes:
        try:
            async with asyncio.timeout(_SLOWEST_CONTENT if method.has_content else _SLOWEST_QUESTION):
                content = await context.read()
        except TimeoutError:
            self._refusals.add("calls whose request did not come")
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, f"a {name} request did not come") from None
        if not isinstance(content, bytes):
            content = b""
        if len(content) > method.largest:
            self._refusals.add("calls that are too large")
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"a {name} request of {len(content)} bytes is refused; expected at most {method.largest}",
            )
        return content

    async def _send_later(self, size: int, context: grpc.aio.ServicerContext) -> None:
        """Wait until `size` bytes may be on their way, and count them until the call is over."""
        await self._outflow.take(size)
        left = [size]

        def give_back(*_: object) -> None:
            while left:
                self._outflow.give_back(left.pop())

        asyncio.get_running_loop().call_later(Outflow.LONGEST, give_back)
        context.add_done_callback(give_back)

    async def _run_beside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)


async def _run_here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
