"""What a failed call means for a client: go on, connect again, or give up with one sentence."""

import datetime as dt

import grpc

from nufed.common.errors import PeerError
from nufed.common.untrusted import printable
from nufed.deploy.network.fleet_headers import TURNED_AWAY
from nufed.deploy.network.node_auth import REVOKED
from nufed.deploy.network.server_probe import ServerAddress

_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class ConnectionLost(Exception):  # noqa: N818 - an event the client goes on from
    """The connection is gone, or the server does not know this node any more: connect again."""


class RunOver(Exception):  # noqa: N818 - an event the client goes on from
    """The run that a message belongs to is over, or its round is."""


class ServerFinished(Exception):  # noqa: N818 - an event the client goes on from
    """The server says how its run ended, and closes."""

    def __init__(self, ending: str) -> None:
        super().__init__(ending)
        self.ending = ending


class TurnedAway(Exception):  # noqa: N818 - an event the client ends from
    """The server does not let this client take part, and says why."""


class AlreadyRegistered(Exception):  # noqa: N818 - an event the client goes on from
    """The server knows this node from an earlier connection."""


def now() -> dt.datetime:
    """Return this machine's time."""
    return dt.datetime.now(dt.UTC)


def explain(error: grpc.RpcError, server: ServerAddress) -> Exception:
    """Return what a failed call means for the client."""
    code, details = error.code(), str(error.details())
    status = grpc.StatusCode
    if code in _PASSING:
        return ConnectionLost(details)
    if details.startswith(TURNED_AWAY):
        return TurnedAway(printable(details.removeprefix(TURNED_AWAY)))
    if code is status.PERMISSION_DENIED:
        return RunOver(details)
    if code is status.UNAUTHENTICATED:
        return _explain_refusal(details, server)
    if code is status.UNIMPLEMENTED:
        return PeerError(
            f"What answers at {server} is not Flower's Fleet API over gRPC: start `nufed server`, or a SuperLink of "
            "Flower 1.39 or older (newer ones need FLWR_INTERNAL_GRPC_FLEET_API=1)."
        )
    if '"code": 23' in details or '"code":23' in details:
        return AlreadyRegistered(details)
    if "2001" in details:
        return PeerError(
            f"The server at {server} admits registered node keys only, and this client gave none: give --key with the "
            "file that `nufed certs request` made."
        )
    if "2004" in details:
        return PeerError(
            f"The server at {server} does not know this client's key, or it was revoked: make one with "
            "`nufed certs request`, have the operator admit it with `nufed certs admit`, and give it with --key."
        )
    return PeerError(f"The server at {server} refuses this client ({code.name}: {details}): compare both versions.")


def _explain_refusal(details: str, server: ServerAddress) -> Exception:
    if details.startswith(REVOKED):
        return PeerError(
            f"The server at {server} revoked this client's key: make a new one with "
            "`nufed certs request`, have the operator admit it with `nufed certs admit`, and give it with --key."
        )
    if "timestamp" in details.lower():
        clock = f"{now():%Y-%m-%d %H:%M:%S} UTC"
        return PeerError(
            f"The clocks of this machine ({clock}) and of the server at {server} differ by more than 5 minutes: "
            "set both right."
        )
    if "signature" in details.lower() or "metadata" in details.lower():
        return PeerError(f"The server at {server} does not accept this client's signature ({details}): check --key.")
    return ConnectionLost(details)
