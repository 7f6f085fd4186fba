"""One long-lived client process: data and model stay loaded, and the ClientApp is called in it.

Flower's own SuperNode starts a process for each message.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from nufed.common.config import Scalar
from nufed.common.errors import NufedError, PeerError
from nufed.common.events import EventStream, Joined, Left
from nufed.deploy.flower_runtime.words import ErrorCode
from nufed.deploy.network.answer_lines import answer_event, describe_answer
from nufed.deploy.network.call_failures import ConnectionLost, RunOver, ServerFinished, TurnedAway
from nufed.deploy.network.certificates import read_certificate, read_private_key
from nufed.deploy.network.fleet_connection import FleetConnection
from nufed.deploy.network.server_probe import ServerAddress, probe

log = logging.getLogger(__name__)

ENDED = "is over"
ENDINGS = {
    "interrupted": "was interrupted before its end",
    "nothing-trained": f"{ENDED} and has trained nothing",
    "diverged": f"{ENDED}: it diverged",
    "tuned": f"{ENDED}: a search, whose choice is yet to be trained with",
    "budget-spent": f"{ENDED}: another round would reveal more than its ε allows",
}
"""What to say of a run that ended in another way than at its end."""

_SHORTEST_WAIT, _LONGEST_WAIT = 0.2, 5.0
_SHORTEST_IDLE, _LONGEST_IDLE = 0.05, 1.0
_SAY_AGAIN = 60.0


@dataclass(frozen=True)
class ClientIdentity:
    """Who a client is and what it works with.

    Attributes:
        name: what the client is called; with a key, the name that its key was admitted under.
        key: file of the node's private key; None without TLS and node keys.
        node_config: what the ClientApp reads, e.g. `data` and `client-id`.
        default_run_config: complete flat run configuration, for servers that send changes to it alone.
    """

    name: str
    key: Path | None = None
    node_config: Mapping[str, Scalar] = field(default_factory=dict)
    default_run_config: Mapping[str, Scalar] = field(default_factory=dict)


class DirectClient:
    """Serves one ClientApp to one server until it is stopped.

    Args:
        app: the ClientApp.
        server: HOST:PORT of a `nufed server` or a stock SuperLink's Fleet API.
        identity: who this client is.
        root_certificates: file of the trusted authorities; None for no TLS.
        on_event: called with a line of text about the connection.

    Attributes:
        events: takes what this client has answered, and when it was connected; to be replaced before `serve`.

    Raises:
        PeerError: key or certificates are unusable.
    """

    def __init__(
        self,
        app: ClientApp,
        server: str,
        identity: ClientIdentity,
        *,
        root_certificates: Path | None = None,
        on_event: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.events = EventStream()
        roots = read_certificate(root_certificates, "the authority's certificate") if root_certificates else None
        self._app, self._identity, self._on_event = app, identity, on_event
        self._server = ServerAddress.parse(server, roots)
        self._key = read_private_key(identity.key) if identity.key else ec.generate_private_key(ec.SECP384R1())
        self._process = secrets.token_hex(16)
        self._stopping = threading.Event()
        self._unfit: NufedError | None = None
        self._contexts: dict[int, Context] = {}
        self._unsent: tuple[Message, float] | None = None

    def stop(self) -> None:
        """Make `serve` return after the message it works on."""
        self._stopping.set()

    def serve(self, *, until_finished: bool = False, patience: float | None = None) -> str | None:
        """Work on messages, connecting again whenever the connection is lost.

        Args:
            until_finished: return when the server says that its run has ended, instead of waiting for the next.
            patience: seconds to wait for a server that is not there; None waits for ever.

        Returns:
            How the run ended, in the server's words (`nufed.server.outcome.Status`); None if this client was stopped.

        Raises:
            PeerError: the server refuses this client, is not the one expected, or did not come in time.
            NufedError: this client cannot take part, for a reason of its own such as its data.
        """
        wait = _SHORTEST_WAIT
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._await_server(patience)
                with self._connect() as connection:
                    self._on_event(f"{self._identity.name} is connected to {self._server}")
                    self.events.tell(Joined, client=self._identity.name)
                    try:
                        self._work(connection)
                    finally:
                        self.events.tell(Left, client=self._identity.name)
            except TurnedAway as refusal:
                if self._unfit is not None:
                    raise self._unfit from refusal
                raise PeerError(f"The server at {self._server} turned this client away: {refusal}.") from refusal
            except ServerFinished as finished:
                self._on_event(f"the run at {self._server} {ENDINGS.get(finished.ending, ENDED)}")
                if until_finished:
                    return finished.ending
                self._stopping.wait(_LONGEST_WAIT)
            except ConnectionLost as lost:
                self._on_event(f"the connection to {self._server} is lost ({lost}); connecting again")
                # A server that fails at once, again and again, is not asked ten times a second.
                wait = _SHORTEST_WAIT if time.monotonic() - started > _LONGEST_WAIT else min(2 * wait, _LONGEST_WAIT)
                self._stopping.wait(wait)
        return None

    def _await_server(self, patience: float | None) -> None:
        """Return when the server answers; say once a minute that it does not."""
        deadline = float("inf") if patience is None else time.monotonic() + patience
        wait, said_at = _SHORTEST_WAIT, float("-inf")
        while (reason := probe(self._server)) is not None and not self._stopping.is_set():
            now = time.monotonic()
            if now >= deadline:
                raise PeerError(
                    f"No server could be reached at {self._server} within {patience:g} s ({reason}): check host and "
                    "port, and that `nufed server` runs."
                )
            if now - said_at >= _SAY_AGAIN:
                self._on_event(f"no server at {self._server} yet ({reason}); trying again until there is one")
                said_at = now
            self._stopping.wait(min(wait, max(0.0, deadline - now)))
            wait = min(wait * 1.5, _LONGEST_WAIT)

    def _connect(self) -> FleetConnection:
        registers = self._identity.key is None
        return FleetConnection(
            self._server, self._key, registers=registers, name=self._identity.name, process=self._process
        )

    def _work(self, connection: FleetConnection) -> None:
        """Answer messages until stopped; a reply that a lost connection held up goes first."""
        idle = _SHORTEST_IDLE
        while not self._stopping.is_set():
            try:
                self._send_unsent(connection)
                asked = time.monotonic()
                message = connection.receive()
                if message is not None:
                    idle = _SHORTEST_IDLE
                    self._answer(message, connection)
                elif time.monotonic() - asked < 1.0:
                    # A stock SuperLink answers at once that there is nothing.
                    self._stopping.wait(idle)
                    idle = min(idle * 1.5, _LONGEST_IDLE)
            except RunOver as over:
                self._unsent = None
                self._on_event(f"{over}; the reply is dropped")

    def _send_unsent(self, connection: FleetConnection) -> None:
        if self._unsent is not None:
            reply, seconds = self._unsent
            if reply.metadata.src_node_id != connection.node_id:
                raise RunOver("the server was started again and knows nothing of the message")
            connection.send(reply, seconds)
            self._unsent = None

    def _answer(self, message: Message, connection: FleetConnection) -> None:
        """Call the ClientApp and send what it answers."""
        started, name = time.monotonic(), self._identity.name
        context = self._context(message.metadata.run_id, connection)
        reply, error = _call_app(self._app, message, context)
        if message.metadata.message_type == MessageType.QUERY:
            self._unfit = error if isinstance(error, NufedError) else None
        self._unsent = reply, time.monotonic() - started
        self._send_unsent(connection)
        if line := describe_answer(message, reply, time.monotonic() - started):
            self._on_event(line)
        if event := answer_event(message, reply, time.monotonic() - started, name):
            self.events.publish(event)

    def _context(self, run_id: int, connection: FleetConnection) -> Context:
        """Return the run's context, made at its first message and kept; earlier runs are forgotten."""
        if run_id not in self._contexts:
            config = {**self._identity.default_run_config, **connection.run_config(run_id)}
            node_config = dict(self._identity.node_config)
            self._contexts = {run_id: Context(run_id, connection.node_id, node_config, RecordDict(), config)}
        return self._contexts[run_id]


def _call_app(app: ClientApp, message: Message, context: Context) -> tuple[Message, Exception | None]:
    """Return the ClientApp's reply; an exception becomes an error reply and leaves the context's state as it was.

    Returns:
        the reply, and what the app raised.
    """
    state = context.state
    context.state = RecordDict({name: type(record)(dict(record)) for name, record in state.items()})  # type: ignore[arg-type]
    try:
        return _checked(app(message=message, context=context), message), None
    except Exception as error:
        # Flower's contract: whatever an app raises is answered, and the node lives on.
        context.state = state
        expected = isinstance(error, NufedError)
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        log.exception("a %s message failed: %s", message.metadata.message_type, reason, exc_info=not expected)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message), error


def _checked(reply: object, message: Message) -> Message:
    if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise TypeError(f"the ClientApp returned {type(reply).__name__}, expected a reply to its message")
    return reply
