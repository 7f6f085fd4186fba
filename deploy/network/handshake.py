"""Whether a server would let a client in, asked without joining: nobody's place is taken and no run hears of it.

The question is an `ActivateNode` call with the header `nufed-check`. Peers that do not know the header refuse the call
before anything comes of it: earlier servers for its name, which is none, and SuperLinks for its heartbeat interval.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from nufed.common import __version__
from nufed.common.errors import PeerError
from nufed.common.untrusted import printable
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.call_failures import ConnectionLost, TurnedAway
from nufed.deploy.network.calls import Call
from nufed.deploy.network.certificates import read_certificate, read_private_key
from nufed.deploy.network.fleet_connection import ask_to_join
from nufed.deploy.network.server_probe import ServerAddress, probe

NO_NAME = "\x00"
"""What a checking client calls itself: no server takes it for a name."""


@dataclass(frozen=True)
class Handshake:
    """What a server answered.

    Attributes:
        server: HOST:PORT.
        version: of NuFed on the server; empty if it does not say.
        is_taken: whether a client of that name is connected now; None if the server does not say.
    """

    server: str
    version: str = ""
    is_taken: bool | None = None

    @property
    def is_same_version(self) -> bool:
        """Whether both sides run the same version of NuFed."""
        return self.version == __version__


def shake_hands(server: str, name: str, *, key: Path | None, root_certificates: Path | None) -> Handshake:
    """Return what a server answers to a client that asks whether it may join.

    Args:
        server: HOST:PORT.
        name: of the client.
        key: file of its private key; None without TLS and node keys.
        root_certificates: file of the trusted authorities; None for no TLS.

    Raises:
        ConfigError: the address is none.
        PeerError: the server cannot be reached, is not the one expected, or would not let this client in.
    """
    roots = read_certificate(root_certificates, "the authority's certificate") if root_certificates else None
    address = ServerAddress.parse(server, roots)
    private = read_private_key(key) if key else ec.generate_private_key(ec.SECP384R1())
    if (reason := probe(address)) is not None:
        raise PeerError(
            f"No server could be reached at {address} ({reason}): check host and port, and that `nufed server` runs."
        )
    try:
        answer = ask_to_join(address, private, headers.quote_name(name), NO_NAME)
    except TurnedAway as refusal:
        if str(refusal).startswith("its name is none"):
            return Handshake(str(address))
        raise PeerError(f"The server at {address} would turn this client away: {refusal}.") from refusal
    except ConnectionLost as lost:
        raise PeerError(f"The server at {address} broke off ({lost}): try again, or ask its operator.") from lost
    state = headers.header_text(answer, headers.CHECK)
    known = {headers.CHECK_FREE: False, headers.CHECK_TAKEN: True}
    return Handshake(str(address), printable(headers.header_text(answer, headers.VERSION)), known.get(state))


def answer_check(context: Call, by_key: str | None, is_connected: Callable[[str], bool]) -> None:
    """Answer a client that asks whether it would be let in; aborts the call with the reason if it would not.

    Args:
        context: of the call, whose signature was verified.
        by_key: name of the client's key; None where no keys are in use.
        is_connected: whether a client of some name is connected.
    """
    name = headers.read_checked_name(context.invocation_metadata())
    if name is None:
        reason = f"its name cannot be used: expected {headers.NAME_RULE}"
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, headers.TURNED_AWAY + reason)
    if by_key not in (None, name):
        reason = f"its key is that of {by_key!r}, but it calls itself {name!r}; {headers.SAME_NAME}"
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, headers.TURNED_AWAY + reason)
    state = headers.CHECK_TAKEN if is_connected(name) else headers.CHECK_FREE
    context.send_initial_metadata(((headers.CHECK, state), (headers.VERSION, __version__)))
