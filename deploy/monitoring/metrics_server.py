"""A small HTTP server that Prometheus asks: `GET /metrics`, and nothing else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from nufed.common.errors import ConfigError, RunError

_MOST_REQUESTS = 8
_LARGEST_PORT = 65535


def parse_address(text: str, option: str = "--metrics") -> tuple[str, int]:
    """Return host and port of `[HOST:]PORT`; without a host it is this machine's loopback.

    Raises:
        ConfigError: it is none.
    """
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > _LARGEST_PORT:
        raise ConfigError(f"Expected [HOST:]PORT behind {option}, e.g. 9100 or 0.0.0.0:9100, got {text!r}.")
    return host, int(port)


@contextmanager
def served(registry: CollectorRegistry, address: str) -> Iterator[str]:
    """Serve a registry's metrics at `[HOST:]PORT` inside the block, and yield their URL; port 0 takes any free one.

    Raises:
        ConfigError: the address is none.
        RunError: it cannot be listened on.
    """
    host, port = parse_address(address)
    try:
        server = _Server(host, port, registry)
    except OSError as error:
        raise RunError(
            f"Expected to serve metrics at {address}, but the system refused ({error.strerror or error}). Choose "
            "another --metrics."
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def exposed(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return a registry's metrics in the format that an `Accept` header prefers, and their content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Server(ThreadingHTTPServer):
    """Answers a few requests at a time; holds the registry."""

    daemon_threads = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._free = threading.BoundedSemaphore(_MOST_REQUESTS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or hang up where too many are being answered."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make place for the next one."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break off."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Server
    timeout = 10.0
    server_version, sys_version = "nufed", ""

    def do_GET(self) -> None:
        """Answer with the metrics, in the format that the caller prefers."""
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, "text/plain; charset=utf-8", b"The metrics are at /metrics.\n")
            return
        content, content_type = exposed(self.server.registry, self.headers.get("Accept", ""))
        self._answer(200, content_type, content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Log nothing: whoever asks chooses the words."""

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
