"""One long-lived server process: Flower's state and Fleet gRPC API, and the ServerApp, woken by replies.

Flower's own SuperLink runs the ServerApp in a process of its own and polls on both sides (docs/decisions/0005).
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp
from grpc_health.v1 import health_pb2

from nufed.common.config import Scalar
from nufed.common.errors import BudgetSpentError, DivergedError, NothingTrainedError, PeerError, RunError
from nufed.common.events import EventStream
from nufed.deploy.flower_runtime.words import (
    NOOP_FEDERATION_ID,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    Fab,
    Run,
    SubStatus,
    TaskIdentity,
    TaskType,
)
from nufed.deploy.network.connections import Connections
from nufed.deploy.network.file_limit import is_crowded, most_connections, raise_file_limit
from nufed.deploy.network.fleet_gate import LARGEST_REQUEST, FleetGate
from nufed.deploy.network.fleet_grid import FleetGrid
from nufed.deploy.network.fleet_service import FleetService
from nufed.deploy.network.flower_state import changed_nodes, flower_states, num_online
from nufed.deploy.network.free_memory import FreeMemory
from nufed.deploy.network.network_loop import network_loop
from nufed.deploy.network.node_auth import NodeAuth
from nufed.deploy.network.node_keys import AdmittedKeys
from nufed.deploy.network.refusals import Announcements, Refusals, make_records_printable
from nufed.deploy.network.rosters import RosterFile
from nufed.deploy.network.serving import (
    MOST_WATCHERS,
    Health,
    LoopServer,
    fleet_options,
    health_handler,
    health_options,
    serve,
)

_WATCH_INTERVAL = 1.0
_LOOK_PAUSE, _MOST_PAUSES = 5e-5, 1000
"""Seconds for each connected client, up to a thousand, between two looks at who came and went."""
_COUNT_FILES = 10.0
"""Seconds between two counts of open files, which look at each."""
_TASK_HEARTBEAT = 15.0
_SAY_AGAIN = 60.0
_ENDINGS = {NothingTrainedError: "nothing-trained", DivergedError: "diverged", BudgetSpentError: "budget-spent"}

_FAREWELL = 3.0
"""Seconds that clients have to hear how a run ended: all that are idle hear it at once."""
_FAREWELL_IN_MID_ROUND = 10.0
"""The same where the server was stopped: clients that are training hear it when they are done."""


@dataclass(frozen=True)
class ServerSecurity:
    """What a server proves itself with and whom it admits.

    Attributes:
        certificate: the server's certificate chain (PEM).
        key: its private key (PEM).
        client_keys: folder of the admitted clients' public keys.
        roster: these keys as the authority signed them; None where nobody did.
    """

    certificate: Path
    key: Path
    client_keys: Path
    roster: RosterFile | None = None

    def roster_note(self) -> str | None:
        """Return what is to be said where clients have no signed roster to know one another by."""
        return self.roster.note() if self.roster else None


@dataclass(frozen=True)
class ServerEndpoint:
    """Where and how a server listens.

    Attributes:
        address: HOST:PORT; port 0 takes any free one.
        security: None for neither TLS nor node keys (`--insecure`).
        health_address: HOST:PORT of a second, unencrypted port with the health service alone; None for no such port.
        database: SQLite file that node registrations survive in; None for memory.
    """

    address: str
    security: ServerSecurity | None = None
    health_address: str | None = None
    database: Path | None = None


@dataclass(frozen=True)
class AppBundle:
    """The app as a Flower App Bundle, which stock SuperNodes download.

    Attributes:
        content: the bundle.
        app_id: `publisher/name`.
        version: of the app.
    """

    content: bytes
    app_id: str
    version: str


class DirectServer:
    """Serves nodes from its start to its `close`, and runs one ServerApp at a time.

    Args:
        endpoint: where and how to listen.
        on_event: called with a line of text when a client joins or leaves, or a key is admitted or revoked.
        events: takes who joins and leaves, and is told the connections.

    Attributes:
        ending: how the work ended that clients are told of when the server closes (`nufed.server.outcome.Status`).

    Raises:
        PeerError: certificate, key or client keys are unusable.
        RunError: the address or the database cannot be used.
    """

    def __init__(
        self,
        endpoint: ServerEndpoint,
        *,
        on_event: Callable[[str], None] = lambda _line: None,
        events: EventStream | None = None,
    ) -> None:
        make_records_printable()
        self._on_event, self._on_client = on_event, Announcements(on_event)
        self._keys = AdmittedKeys(endpoint.security.client_keys) if endpoint.security else None
        self._roster = endpoint.security.roster if endpoint.security else None
        self._file_limit, self._count_files_at = raise_file_limit(), float("-inf")
        states = flower_states(endpoint.database)
        self._state = states.state()
        events = EventStream() if events is None else events
        self.refusals, self.connections = Refusals(), Connections(events)
        events.connections = self.connections.all
        self.service = FleetService(states, keys=self._keys, on_event=self._on_client)
        for key in self._keys or ():
            self.service.register(key)
        self._healths = [Health(self.refusals)]
        self._online: set[int] = set()
        self.ending = "interrupted"
        self._closing = threading.Event()
        auth = NodeAuth(states, self._keys, self.service.sessions, refusals=self.refusals, on_event=self._on_client)
        self._gate = FleetGate(
            self.service, auth, self.connections, self.refusals, is_blocking=endpoint.database is not None
        )
        self._servers = [self._start_fleet(endpoint)]
        if endpoint.health_address:
            self._servers.append(self._start_health(endpoint.health_address))
        self._watcher = threading.Thread(target=self._watch, name="watch-nodes", daemon=True)
        self._watcher.start()

    def __enter__(self) -> "DirectServer":
        """Return the server, which serves already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the server."""
        self.close()

    def close(self) -> None:
        """Tell waiting clients how the run ended, and stop serving."""
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        patience = _FAREWELL_IN_MID_ROUND if self.ending == "interrupted" else _FAREWELL
        self.service.close(patience, ending=self.ending)
        self._closing.set()
        self.service.nodes.notify()
        for server in self._servers:
            server.stop()
        self._gate.close()
        self._watcher.join()

    def num_connected(self) -> int:
        """Return how many nodes are connected."""
        return num_online(self._state)

    def run(self, app: ServerApp, run_config: Mapping[str, Scalar], *, bundle: AppBundle | None = None) -> None:
        """Run a ServerApp to its end; what it raises comes out.

        Args:
            app: the ServerApp.
            run_config: complete flat run configuration; goes to the ServerApp and to every client.
            bundle: the app for stock SuperNodes; None if only our own clients take part.
        """
        self.ending = "interrupted"
        with self.grid_of(run_config, bundle=bundle) as grid:
            try:
                app(grid, Context(grid.run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config)))
            except (NothingTrainedError, DivergedError, BudgetSpentError) as error:
                self.ending = _ENDINGS[type(error)]
                raise
        self.ending = "complete"

    @contextmanager
    def grid_of(self, run_config: Mapping[str, Scalar], *, bundle: AppBundle | None = None) -> Iterator[FleetGrid]:
        """Open a run for the length of the block, and offer what reaches its clients; one run at a time.

        Args:
            run_config: complete flat run configuration; goes to every client.
            bundle: see `run`.
        """
        with self._open_run(run_config, bundle) as run:
            grid = FleetGrid(self._state, run, self.service, self.connections)
            grid.roster = self._roster
            yield grid

    def _start_fleet(self, endpoint: ServerEndpoint) -> LoopServer:
        credentials = _credentials(endpoint.security, self._on_event) if endpoint.security else None
        options = fleet_options(self._file_limit, LARGEST_REQUEST)
        health = health_handler(self._healths[0])
        server = serve(endpoint.address, health, self._gate, credentials=credentials, options=options)
        self.address = server.address
        return server

    def _start_health(self, address: str) -> LoopServer:
        self._healths.append(Health(self.refusals, most_watchers=MOST_WATCHERS))
        server = serve(address, health_handler(self._healths[1]), options=health_options())
        self.health_address = server.address
        return server

    def _set_health(self, status: int) -> None:
        for health in self._healths:
            network_loop().call_soon_threadsafe(health.set, status)

    @contextmanager
    def _open_run(self, run_config: Mapping[str, Scalar], bundle: AppBundle | None) -> Iterator[Run]:
        """Create a run in Flower's state, keep it alive, and write down how it ended."""
        digest = hashlib.sha256(bundle.content).hexdigest() if bundle else ""
        if bundle:
            self._state.store_fab(Fab(digest, bundle.content, {}))
        app_id, version = (bundle.app_id, bundle.version) if bundle else ("", "")
        run_id = self._state.create_run(
            app_id, version, digest, dict(run_config), NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        run = self._state.get_run_info(run_ids=[run_id])[0]
        task_id = run.primary_task_id
        if task_id is None or not (self._state.claim_task(task_id) and self._state.activate_task(task_id)):
            raise RunError("Flower's state does not start the run; remove the --state file and start the server again.")
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, task_id
        over = threading.Event()
        beat = threading.Thread(target=self._keep_alive, args=(task_id, over), name="keep-run-alive", daemon=True)
        beat.start()
        status, details = SubStatus.FAILED, "the ServerApp raised"
        try:
            yield run
            status, details = SubStatus.COMPLETED, ""
        finally:
            over.set()
            beat.join()
            self._state.finish_task(task_id, status, details)
            self._state.cleanup_run(run_id)

    def _keep_alive(self, task_id: int, over: threading.Event) -> None:
        # Flower declares a run failed whose task was silent for 60 s.
        while not over.wait(_TASK_HEARTBEAT):
            self._state.acknowledge_task_heartbeat(task_id)

    def _watch(self) -> None:
        """Notice who came and went, and which keys were admitted or revoked, until the server closes."""
        memory = FreeMemory()
        while not self._closing.is_set():
            seen = self.service.nodes.count
            self._read_keys()
            self._tell_of_refusals()
            if self._roster and (line := self._roster.warning()):
                self._on_event(line)
            changed = changed_nodes(self._state, self._online)
            memory.give_back()
            for node_id, is_here in sorted(changed.items()):
                (self._online.add if is_here else self._online.discard)(node_id)
                name, what = self.service.sessions.name(node_id), "joined" if is_here else "left"
                self._on_client(name, f"{name} {what} ({len(self._online)} connected)")
                if is_here:
                    self.connections.join(node_id, name, "" if self._keys is None else name)
                else:
                    self.connections.leave(node_id)
            if changed:
                self.service.nodes.notify()
            elif not self.service.nodes.wait(seen, _WATCH_INTERVAL):
                continue
            self._closing.wait(_LOOK_PAUSE * min(len(self._online), _MOST_PAUSES))

    def _tell_of_refusals(self) -> None:
        """Say once a minute what was refused, and that few files are left for connections."""
        if line := self.refusals.take_line():
            self._on_event(line)
        if (now := time.monotonic()) < self._count_files_at:
            return
        self._count_files_at = now + _COUNT_FILES
        if is_crowded(self._file_limit):
            self._count_files_at = now + _SAY_AGAIN
            self._on_event(
                f"nearly all of {most_connections(self._file_limit)} possible connections are open, and further ones "
                "are refused; raise the limit of open files (ulimit -n) if these are clients"
            )

    def _read_keys(self) -> None:
        if self._keys is None:
            return
        change = self._keys.refresh()
        for key in change.admitted:
            self.service.register(key)
            self._on_event(f"{self._keys.name_of(key)} is admitted")
        for key in change.revoked:
            node_id = self._state.get_node_id_by_public_key(key)
            if node_id is not None:
                self._state.deactivate_node(node_id)
                self.service.wake([node_id])
                self._on_event(f"{self.service.sessions.name(node_id)}'s key is revoked")
        for problem in change.problems:
            self._on_event(problem)


def _credentials(security: ServerSecurity, on_event: Callable[[str], None]) -> grpc.ServerCredentials:
    from nufed.deploy.network.certificates import check_validity, read_certificate

    certificate = read_certificate(security.certificate, "the server's certificate")
    if warning := check_validity(certificate, security.certificate):
        on_event(warning)
    try:
        key = security.key.read_bytes()
    except OSError as error:
        raise PeerError(
            f"Expected the server's private key at {security.key} ({error.strerror}). Make it with `nufed certs init`."
        ) from error
    return grpc.ssl_server_credentials([(key, certificate)])
