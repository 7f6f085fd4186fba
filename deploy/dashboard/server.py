"""The page's server: an address that is checked and taken before a run starts, and a thread of its own."""

import asyncio
import re
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nufed.common.errors import ConfigError, RunError

if TYPE_CHECKING:
    from nufed.deploy.dashboard.pages import Dashboard

LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+):)?(?P<port>\d{1,5})")
_MOST_CONNECTIONS = 128
_MOST_OPEN = 256
"""Connections that are held open, also those that ask for nothing: a run needs files, of which a process has few."""
_FIRST_WORD = 15.0
"""Seconds that somebody who has connected may take to ask for something."""


@dataclass(frozen=True)
class Address:
    """Where a page listens, and by what it is protected.

    Attributes:
        host: name or IP address.
        port: 0 takes a free one.
        certificate: PEM file of the certificate; None without TLS.
        key: PEM file of its key.
        insecure: whether it may listen beyond this machine without TLS.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False

    @classmethod
    def parse(
        cls, text: str, *, certificate: Path | None, key: Path | None, insecure: bool, prefix: str = "--dashboard"
    ) -> "Address":
        """Return the address that `[HOST:]PORT` names, on the loopback interface without a host.

        Raises:
            ConfigError: it is none, TLS is asked for in part, or the page would be open to a network without TLS.
        """
        from nufed.deploy.dashboard.access import is_loopback

        match = _ADDRESS.fullmatch(text.strip())
        if match is None or int(match["port"]) > 65535:
            raise ConfigError(f"Expected {prefix} as PORT or HOST:PORT, e.g. 8080 or 127.0.0.1:8080, got {text!r}.")
        host = (match["host"] or LOOPBACK).strip("[]")
        flags = "--dashboard" if prefix == "--dashboard" else "-"
        if (certificate is None) != (key is None):
            raise ConfigError(f"Expected {flags}-cert and {flags}-key together: TLS needs both. Give both, or neither.")
        if not is_loopback(host) and certificate is None and not insecure:
            raise ConfigError(
                f"{prefix} {text} is open to a network: give {flags}-cert and {flags}-key for TLS, or type "
                f"{flags}-insecure if the network is trusted. {LOOPBACK} is this machine alone."
            )
        return cls(host, int(match["port"]), certificate, key, insecure)


class _BoundedListener(socket.socket):
    """Hangs up on whoever connects while many are open, also those that have not agreed on TLS; holds which are.

    The server's own bound counts connections from when they are encrypted, and each has a minute until then.
    """

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self._accepted: set[socket.socket] = set()

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection and its address.

        Raises:
            BlockingIOError: there is none, or it was one too many.
        """
        accepted, address = super().accept()
        self._accepted = {each for each in self._accepted if each.fileno() >= 0}
        if len(self._accepted) > _MOST_OPEN:
            accepted.close()
            raise BlockingIOError
        self._accepted.add(accepted)
        return accepted, address


class PageServer:
    """Serves a page from a thread; holds the socket, which is taken at once, so that a clash is told before a run."""

    def __init__(self, address: Address) -> None:
        """Take the address.

        Raises:
            ConfigError: the certificate cannot be used.
            RunError: the address is in use, or is not this machine's.
        """
        self.address = address
        self._tls = _tls(address) if address.certificate else None
        self._socket = _listening(address)
        self.port: int = self._socket.getsockname()[1]
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        host = self.address.host
        if host in ("0.0.0.0", "::"):  # noqa: S104 - what was asked for
            host = socket.gethostname()
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self._tls else 'http'}://{shown}:{self.port}/"

    @property
    def names(self) -> list[str]:
        """Further names that the page may be asked for by: this machine's, and those of its certificate."""
        names = [socket.gethostname(), socket.getfqdn()] if not self._is_local() else []
        return [*names, *(_names_of_certificate(self.address.certificate) if self.address.certificate else ())]

    def _is_local(self) -> bool:
        from nufed.deploy.dashboard.access import is_loopback

        return is_loopback(self.address.host)

    def access(self) -> Any:
        """Return the rules of who may see and do what here."""
        from nufed.deploy.dashboard.access import Access, names_of

        any_address = self.address.host in ("0.0.0.0", "::")  # noqa: S104 - what was asked for
        names = names_of(self.address.host, self.names)
        return Access(names, self._is_local(), self._tls is not None, any_address, self.port)

    def start(self, dashboard: "Dashboard") -> None:
        """Serve from now on."""
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol

        class Prompt(H11Protocol):
            """Lets go who connects and asks for nothing, or comes when there are too many."""

            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                if len(self.connections) > _MOST_OPEN:
                    transport.abort()
                self._silence = self.loop.call_later(_FIRST_WORD, self._end_if_silent)

            def connection_lost(self, exc: Exception | None) -> None:
                self._silence.cancel()
                super().connection_lost(exc)

            def _end_if_silent(self) -> None:
                if self.cycle is None:
                    self.transport.close()

        config = uvicorn.Config(
            dashboard.application(),
            http=Prompt,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=16_384,
        )
        config.load()
        config.ssl = self._tls
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="dashboard", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def wait(self) -> None:
        """Wait until the page is closed, which it is not by itself: Ctrl-C ends the waiting."""
        while self._thread and self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Serve no more."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(5)
        self._socket.close()

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        """Serve no more."""
        self.close()


def _listening(address: Address) -> socket.socket:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        taken = _BoundedListener(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(place)
            taken.listen(128)
            taken.setblocking(False)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise RunError(
            f"Expected to serve the page on {address.host}:{address.port}, but the system refused ({error.strerror}). "
            "Choose another port, or end what listens there."
        ) from error
    return taken


def _tls(address: Address) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(str(address.certificate), str(address.key), password=_no_password)
    except (OSError, ValueError) as error:  # of ssl, too
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigError(
            f"Expected a certificate in {address.certificate} and its key in {address.key}, but {reason}. Give PEM "
            "files that belong together, the key without a password."
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def _names_of_certificate(path: Path) -> list[str]:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
