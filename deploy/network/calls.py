"""A call as the server's synchronous handlers see it, ours and Flower's: no network under it, no thread held."""

from collections.abc import Iterable
from typing import NoReturn

import grpc

Metadata = tuple[tuple[str, str | bytes], ...]


class Refused(Exception):  # noqa: N818 - what ends a call, as gRPC's own AbortError does
    """A call is answered with a status instead of a response."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


class Call:
    """Holds what a call came with, and what is to be sent before its response.

    Has those methods of `grpc.ServicerContext` that handlers use; what they send is sent once they have returned.

    Attributes:
        patience: seconds that the caller waits for an answer.
        sent: headers to send before the response.
    """

    def __init__(self, metadata: Iterable[tuple[str, str | bytes]], peer: str, patience: float | None = None) -> None:
        """Take a call's headers, the address and port of who calls, and how long they wait; None is for ever."""
        self.patience = float("inf") if patience is None else patience
        self._metadata: Metadata = tuple(metadata)
        self._peer = peer
        self._code: grpc.StatusCode | None = None
        self.sent: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        """Return the headers that came."""
        return self._metadata

    def forget_headers(self) -> None:
        """Let go of the headers, so that a call which is held does not keep them."""
        self._metadata = ()

    def peer(self) -> str:
        """Return the address and port of who calls, as gRPC writes them."""
        return self._peer

    def code(self) -> grpc.StatusCode | None:
        """Return the status that the call was refused with, or None."""
        return self._code

    def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Have headers sent before the response."""
        self.sent += tuple(metadata)

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Refuse the call.

        Raises:
            Refused: always.
        """
        self._code = code
        raise Refused(code, details)
