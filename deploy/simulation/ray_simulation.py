"""Simulation in Ray's actors, on this machine or on all nodes of a cluster.

A client's reply depends on its message, its configuration and the threads of its process (`NUFED_NUM_THREADS`), so that
the run is that of the engine `local`, bit for bit, whichever actor has taken whose turn. A turn that was lost with its
actor is taken again from the same state.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import ArrayRecord, Message
from flwr.serverapp import ServerApp

from nufed.common.config import Scalar
from nufed.common.errors import NufedError, RunError
from nufed.common.settings import process_settings
from nufed.deploy.simulation.actor_turns import Done, Portions
from nufed.deploy.simulation.cohort import check_own
from nufed.deploy.simulation.engine_options import EngineOptions
from nufed.deploy.simulation.process_worker import load_client_app
from nufed.deploy.simulation.ray_actors import Letter, Packed, Setup
from nufed.deploy.simulation.ray_cluster import RayCluster, ray_cluster
from nufed.deploy.simulation.ray_pool import LOOK, TRIES, Actor, ActorPool, first_line
from nufed.deploy.simulation.simulated_grid import FIRST_NODE_ID, ClientTurn, SimulatedGrid


@dataclass(frozen=True)
class _Turns:
    """Turns of one actor that are to be taken, or under way."""

    messages: Sequence[Message]
    tries: int = 0
    reasons: tuple[str, ...] = ()


class RayGrid(SimulatedGrid):
    """A Grid that runs messages' clients in idle actors; holds who is busy with what.

    Attributes:
        name_of: partition id -> the client's name, for messages.
    """

    def __init__(
        self, pool: ActorPool, *, num_nodes: int, run_config: Mapping[str, Scalar], clients_per_actor: int = 1
    ) -> None:
        """Serve `num_nodes` clients with the pool's actors.

        Raises:
            RunError: there is no node.
        """
        super().__init__(num_nodes, run_config)
        self.name_of: Callable[[int], str] = lambda partition: f"of partition {partition}"
        self._pool, self._portions = pool, Portions(clients_per_actor)
        self._running: dict[Any, tuple[Actor, _Turns | None]] = {}  # None: nobody waits for what comes of it

    def _turns(self, messages: list[Message]) -> Iterator[tuple[Message, ClientTurn]]:
        waiting, mail = deque(map(_Turns, self._portions.of(messages, self._pool.size))), _Mail()
        num_left = len(messages)
        try:
            while num_left:
                self._pool.look()
                while waiting and (actor := self._pool.take()):
                    self._submit(actor, waiting.popleft(), mail)
                for turn, answer in self._finished():
                    if isinstance(answer, Done):
                        num_left -= len(turn.messages)
                        self._portions.repeat(answer)
                        yield from zip(turn.messages, answer.turns, strict=True)
                    else:
                        waiting.appendleft(self._again(turn, answer))
        finally:
            # The caller may stop early; these actors are busy until then, and nobody waits for what they make.
            self._running.update({reference: (actor, None) for reference, (actor, _) in self._running.items()})

    def _submit(self, actor: Actor, turn: _Turns, mail: "_Mail") -> None:
        contexts = [self._context(message.metadata.dst_node_id) for message in turn.messages]
        letters, shared = mail.of(turn.messages)
        self._running[actor.handle.take_turns.remote(letters, contexts, *shared)] = actor, turn

    def _finished(self) -> Iterator[tuple[_Turns, Done | Exception]]:
        """Wait a little and yield turns that have ended, each with its result or with what its actor died of."""
        import ray

        asked = [*self._running, *self._pool.starting]
        ready, _ = ray.wait(asked, num_returns=1, timeout=LOOK) if asked else ([], [])
        if not ready:
            self._pool.tell_of_waiting()
        for reference in ready:
            if reference in self._pool.starting:
                self._pool.started(reference)
                continue
            actor, turn = self._running.pop(reference)
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # raised by our own code there
                raise RunError(f"Expected an actor to take a turn, but on node {actor.node.host} {error}") from error
            except ray.exceptions.RayError as error:  # the actor, its node or what it made is gone
                self._pool.lose(actor)
                if turn:
                    yield turn, error
                continue
            self._pool.give_back(actor)
            if turn and isinstance(answer, NufedError):
                raise answer
            if turn:
                yield turn, cast("Done", answer)

    def _again(self, turn: _Turns, error: Exception) -> _Turns:
        """Return a lost turn to be taken anew.

        Raises:
            RunError: it was lost too often.
        """
        tries, reasons = turn.tries + 1, dict.fromkeys((*turn.reasons, first_line(error)))
        if tries >= TRIES:
            names = [self.name_of(message.metadata.dst_node_id - FIRST_NODE_ID) for message in turn.messages]
            several = f" (or one of the {len(names) - 1} computed with it)" if len(names) > 1 else ""
            raise RunError(
                f"Expected client {names[0]}{several} to take its turn, but {tries} actors have ended in it, often for "
                f"want of memory ({'; '.join(reasons)}). Give each client more with --cpus-per-client, which leaves "
                "fewer actors on a node, or use --engine local, which needs the memory of one client."
            ) from error
        return _Turns(turn.messages, tries, tuple(reasons))


class _Mail:
    """The messages of one phase; holds what several of them have in common, which is put into Ray's store once."""

    def __init__(self) -> None:
        self._put: dict[tuple[int, ...], tuple[ArrayRecord, Any]] = {}

    def of(self, messages: Sequence[Message]) -> tuple[list[Letter], list[Any]]:
        """Return the messages, with a number for each record of arrays, and references to these records."""
        import ray

        letters: list[Letter] = []
        shared: dict[tuple[int, ...], int] = {}
        for message in messages:
            records: list[tuple[str, Any]] = []
            for name, record in message.content.items():
                if not isinstance(record, ArrayRecord):
                    records.append((name, record))
                    continue
                same = tuple(map(id, record.values()))  # a phase's messages have records of their own, of equal arrays
                if same not in self._put:
                    self._put[same] = record, ray.put(record)
                records.append((name, shared.setdefault(same, len(shared))))
            letters.append(Letter(copy.copy(message.metadata), records))
        return letters, [self._put[same][1] for same in shared]


def simulate_with_ray(  # noqa: PLR0913 - all by name
    server_app: ServerApp,
    client_app: str,
    *,
    num_nodes: int,
    run_config: Mapping[str, Scalar],
    options: EngineOptions | None = None,
    data: Callable[[], object] | None = None,
    say: Callable[[str], None] = lambda _: None,
    name_of: Callable[[int], str] | None = None,
) -> None:
    """Run a ServerApp in this process and `num_nodes` clients in as many actors as nodes and processors allow.

    Both apps find `run_config` in their Context; client i has `partition-id` i in its node config. Of a Ray that was
    started here, actors inherit environment and import path, and its processes end with the run.

    Args:
        server_app: the server.
        client_app: `module:name` of the ClientApp.
        num_nodes: clients.
        run_config: the run's options.
        options: which Ray, and what each client is given.
        data: called in each actor before its first turn; arrays that it refers to are on each node once.
        say: told of nodes and actors.
        name_of: partition id -> name of the client, for messages.

    Raises:
        NufedError: raised by either app.
        RunError: there is no client, no Ray or too little of what a client takes, or a client's actors always die.
    """
    import ray

    options = options or EngineOptions()
    if num_nodes < 1:
        raise RunError(f"Expected at least one simulated client, got {num_nodes}. Raise data.num-clients.")
    app = load_client_app(client_app)  # what is wrong with it is said here, before anything starts
    if together := options.clients_per_actor > 1:
        check_own(app)
    num_jobs = math.ceil(num_nodes / options.clients_per_actor)
    with ray_cluster(options.ray_address) as cluster:
        setup = Setup(
            client_app, options.variables(), _given(cluster), None if data is None else Packed.of(data), together
        )
        pool = ActorPool(cluster, ray.put(setup), _per_client(cluster, options), num_jobs, say)
        grid = RayGrid(pool, num_nodes=num_nodes, run_config=run_config, clients_per_actor=options.clients_per_actor)
        grid.name_of = name_of or grid.name_of
        server_app(grid=grid, context=grid.server_context())


def _per_client(cluster: RayCluster, options: EngineOptions) -> dict[str, float]:
    """Return what each actor takes of Ray's resources: processors for its threads, as far as a node has as many."""
    cpus = options.cpus_per_client
    if cpus is None:
        most = max((dict(node.resources).get("CPU", 1.0) for node in cluster.nodes()), default=1.0)
        cpus = min(float(process_settings().num_threads), most)
    return {"CPU": cpus, "GPU": options.gpus_per_client or 0.0, **options.ray_resources}


def _given(cluster: RayCluster) -> dict[str, bytes]:
    """Return the files of what was given in Python, for nodes that do not see this machine's."""
    folder = process_settings().given
    if cluster.is_own or folder is None:
        return {}
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
