"""gRPC servers on the network's loop: ports, connections and their bounds, and the health service."""

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from nufed.common.errors import RunError
from nufed.deploy.network.file_limit import most_connections
from nufed.deploy.network.network_loop import run_there
from nufed.deploy.network.refusals import Refusals

_HANDSHAKE = 10.0
"""Seconds that a connection has to become one: who dials and says nothing is hung up on."""

_IDLE = 60.0
"""Seconds without any call after which a connection is closed; clients hold a call open, or make one every few."""

_SILENCE = 600
"""Seconds for which the system itself keeps connections that have said nothing, where it can: at no cost here."""

_OPEN_FILES = Path("/proc/self/fd")

_MOST_CALLS = 32
"""Calls at a time on one connection; a client has four at most."""

_TLS_FRAME = 4096
"""Bytes of one TLS frame that is sent; each connection has memory for one, of 16 KiB where gRPC chooses."""

_NO_COMPRESSION = 1  # bit set of gRPC's algorithms: a small compressed request cannot unfold to a large one
_MAX_MESSAGE_BYTES = 2**31 - 1
_LARGEST_HEALTH_REQUEST = 4096
_MOST_HEALTH_CONNECTIONS = 64

MOST_WATCHERS = 16
"""Streams at a time that the health port tells of changes."""

_GRACE = 2.0


class LoopServer:
    """A gRPC server on the network's loop, used from any other thread."""

    def __init__(self, server: grpc.aio.Server, address: str) -> None:
        """Hold a server that serves at an address, with the port that it really has."""
        self._server, self.address = server, address

    def stop(self) -> None:
        """Stop serving; calls that are being answered have two seconds."""
        run_there(self._server.stop(_GRACE))


def serve(
    address: str,
    *handlers: grpc.GenericRpcHandler,
    credentials: grpc.ServerCredentials | None = None,
    options: list[tuple[str, int]],
) -> LoopServer:
    """Serve at HOST:PORT.

    Args:
        address: where; port 0 takes any free one.
        handlers: what answers calls; the first that knows a method has it.
        credentials: None for no TLS.
        options: see `fleet_options`.

    Raises:
        RunError: the address cannot be used.
    """

    async def start() -> LoopServer:
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers(handlers)
        bound = _bind(server, address, credentials)
        await server.start()
        return LoopServer(server, bound)

    return run_there(start())


def fleet_options(file_limit: int | None, largest_request: int) -> list[tuple[str, int]]:
    """Return what keeps strangers' connections from taking this process's memory and open files.

    Args:
        file_limit: open files that this process may have; None for any number.
        largest_request: bytes.
    """
    options = [
        *_connection_options(),
        ("grpc.max_concurrent_streams", _MOST_CALLS),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", largest_request),
        ("grpc.tsi.max_frame_size", _TLS_FRAME),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if (most := most_connections(file_limit)) is not None:
        options.append(("grpc.max_allowed_incoming_connections", most))
    return options


def health_options() -> list[tuple[str, int]]:
    """Return the bounds of a port that answers questions about health alone."""
    return [
        *_connection_options(),
        ("grpc.max_concurrent_streams", 4),
        ("grpc.max_receive_message_length", _LARGEST_HEALTH_REQUEST),
        ("grpc.max_allowed_incoming_connections", _MOST_HEALTH_CONNECTIONS),
    ]


def _connection_options() -> list[tuple[str, int]]:
    return [
        ("grpc.server_handshake_timeout_ms", int(_HANDSHAKE * 1000)),
        ("grpc.max_connection_idle_ms", int(_IDLE * 1000)),
        ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Bind a server to an address and return it with the port it really has."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) >= 2**16:
        raise RunError(
            f"Expected HOST:PORT to listen on, with a port below 65536, got {address!r}; for example 0.0.0.0:9092."
        )
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise RunError(
            f"Cannot listen on {address}: the port is taken, the address is not this machine's, or certificate and key "
            "do not belong together. Choose another --listen, or make the certificates anew."
        ) from error
    _leave_silent_connections(bound)
    return f"{host}:{bound}"


def _leave_silent_connections(port: int) -> None:
    """Have Linux hand over connections to a port only once they have said something; elsewhere nothing is done.

    gRPC allocates some 50 KB for a connection before its first byte, and keeps its listening sockets to itself.
    """
    if not hasattr(socket, "TCP_DEFER_ACCEPT") or not _OPEN_FILES.is_dir():
        return
    for entry in list(_OPEN_FILES.iterdir()):
        with contextlib.suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as found:
                is_ours = found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == port
                if is_ours and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _SILENCE)


class Health:
    """Says whether the server serves.

    Args:
        refusals: told of who may not watch.
        most_watchers: streams at a time that are told of changes; 0 where anybody may call.
    """

    SERVICES = ("", "flwr.proto.Fleet")

    def __init__(self, refusals: Refusals, *, most_watchers: int = 0) -> None:
        self._refusals, self._left = refusals, most_watchers
        self._status, self._changed = health_pb2.HealthCheckResponse.SERVING, asyncio.Event()

    def set(self, status: int) -> None:
        """Change what is answered; called on the network's loop."""
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        """Return whether the server serves."""
        if request.service not in self.SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        """Tell of each change, to a few."""
        if not self._left:
            self._refusals.add("streams that watch the server's health")
            await self._refusals.slow_down()
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, "ask with Check; Watch is answered on the --health port, to a few"
            )
        self._left -= 1
        try:
            while True:
                is_known = request.service in self.SERVICES
                known = self._status if is_known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                changed = self._changed
                yield health_pb2.HealthCheckResponse(status=known)
                await changed.wait()
        finally:
            self._left += 1


def health_handler(health: Health) -> grpc.GenericRpcHandler:
    """Return what answers calls of the health service."""
    request, answer = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(health.Check, request, answer),
        "Watch": grpc.unary_stream_rpc_method_handler(health.Watch, request, answer),
    }
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods)
