"""A look at a server before gRPC talks to it: gRPC retries what will never work and keeps the reason to itself.

There are three answers: the server is there and can be trusted (`None`), it cannot be reached now (the reason), or it
never will be as things are set (`PeerError` with one sentence on what is wrong and what to do).
"""

import contextlib
import datetime as dt
import socket
import ssl
from dataclasses import dataclass

from nufed.common.errors import ConfigError, PeerError

_TIMEOUT = 5.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS_FRAME = 4

# Numbers of OpenSSL's X509_V_ERR_*.
_NOT_YET_VALID, _EXPIRED, _HOST_NAME, _ADDRESS = 9, 10, 62, 64


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is, and how it is trusted.

    Attributes:
        host: name or IP address.
        port: of Flower's Fleet API.
        root_certificates: PEM certificates of the authorities that are trusted; None for no TLS (`--insecure`).
    """

    host: str
    port: int
    root_certificates: bytes | None = None

    @classmethod
    def parse(cls, address: str, root_certificates: bytes | None) -> "ServerAddress":
        """Return the address that HOST:PORT names.

        Raises:
            ConfigError: it is not HOST:PORT.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ConfigError(f"Expected --server HOST:PORT, got {address!r}; for example fl.example.org:9092.")
        return cls(host, int(port), root_certificates)

    def __str__(self) -> str:
        """Return HOST:PORT."""
        return f"{self.host}:{self.port}"


def probe(server: ServerAddress) -> str | None:
    """Return None if the server answers as expected, or why it cannot be reached at the moment.

    Raises:
        PeerError: it answers, but not as expected; waiting does not help.
    """
    try:
        with socket.create_connection((server.host.strip("[]"), server.port), timeout=_TIMEOUT) as connection:
            if server.root_certificates is None:
                return _probe_plaintext(connection, server)
            return _probe_tls(connection, server)
    except socket.gaierror:
        return f"the name {server.host} is not known here"
    except TimeoutError:
        return "nothing answers at that address"
    except ConnectionRefusedError:
        return "nothing listens there"
    except OSError as error:
        return error.strerror or str(error)


def _probe_tls(connection: socket.socket, server: ServerAddress) -> str | None:
    context = _context(server)
    try:
        with context.wrap_socket(connection, server_hostname=server.host.strip("[]")):
            return None
    except ssl.SSLCertVerificationError as error:
        raise PeerError(_distrust(error, server)) from error
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
            raise PeerError(
                f"The server at {server} does not speak TLS, so nothing was sent to it: give the server its "
                "certificate, or type --insecure on both sides (for trials on one machine only)."
            ) from error
        return f"the TLS handshake failed ({error.reason or error})"


def _distrust(error: ssl.SSLCertVerificationError, server: ServerAddress) -> str:
    """Return one sentence on why a certificate is not trusted and what to do."""
    now = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC"
    if error.verify_code == _EXPIRED:
        return (
            f"The certificate of {server} has expired, by this machine's clock ({now}): have the operator make a new "
            "one with `nufed certs init`, or set this clock right."
        )
    if error.verify_code == _NOT_YET_VALID:
        return f"The certificate of {server} is not valid yet, by this machine's clock ({now}): set the clock right."
    if error.verify_code in (_HOST_NAME, _ADDRESS):
        return (
            f"The certificate of {server} is not for the name {server.host!r}: dial a name that is in it, or have the "
            f"operator make one with `nufed certs init --san {server.host}`."
        )
    return (
        f"The certificate of {server} was not signed by an authority in --root-certificates "
        f"({error.verify_message}): use the ca.crt that belongs to this server."
    )


def _context(server: ServerAddress) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=(server.root_certificates or b"").decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise PeerError(
            f"--root-certificates holds no usable certificate ({error}): use the ca.crt that belongs to {server}."
        ) from error
    return context


def _probe_plaintext(connection: socket.socket, server: ServerAddress) -> str | None:
    """Say hello in plain HTTP/2, and in TLS if that gets no answer."""
    answer = b""
    with contextlib.suppress(OSError):
        connection.settimeout(_TIMEOUT)
        connection.sendall(_HTTP2_PREFACE)
        answer = connection.recv(9)
    if len(answer) > _SETTINGS_FRAME - 1 and answer[3] == _SETTINGS_FRAME:
        return None
    if _speaks_tls(server):
        raise PeerError(
            f"The server at {server} speaks TLS, but --insecure was typed here: leave it out and give "
            "--root-certificates and --key."
        )
    if answer.startswith(b"HTTP/1"):
        raise PeerError(f"A web server answers at {server}, not Flower's Fleet API over gRPC: check host and port.")
    return "what listens there does not answer"


def _speaks_tls(server: ServerAddress) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((server.host.strip("[]"), server.port), timeout=_TIMEOUT) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except OSError:
        return False
