"""Simulation in several processes: Flower's pool of Ray actors, fed directly instead of through a SuperLink.

Actors, their pool and their resources are Flower's own (`flwr.simulation.ray_transport`). What feeds them is our
grid, because Flower's loop between ServerApp and actors polls every 0.1 s, gives both apps an empty run configuration
when it is started from Python, and turns what a client says is wrong into one of many failed replies.
"""

import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from nufed.common.config import Scalar
from nufed.common.errors import NufedError, RunError
from nufed.common.settings import environment
from nufed.deploy.flower_runtime.words import PARTITION_ID_KEY
from nufed.deploy.simulation.simulated_grid import ClientTurn, SimulatedGrid, take_turn

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""No usage report to Ray's makers; actors without a GPU of their own see CUDA_VISIBLE_DEVICES as the user set it."""


class TurnTaker:
    """Stands in for the ClientApp inside an actor: returns errors as values, since Ray would rewrite exceptions."""

    def __init__(self, client_app: ClientApp) -> None:
        """Wrap the app."""
        self._client_app = client_app

    def __call__(self, message: Message, context: Context) -> ClientTurn | NufedError:
        """Return the app's turn, or its own explanation of what is wrong."""
        try:
            turn = take_turn(self._client_app, message, context)
        except NufedError as error:
            return error
        context.state = RecordDict()  # travels back beside the turn, which has the new one
        return turn


class RayGrid(SimulatedGrid):
    """A Grid that runs each message's client in an idle actor; holds the pool of actors and the clients' states."""

    def __init__(self, pool: Any, client_app: ClientApp, *, num_nodes: int, run_config: Mapping[str, Scalar]) -> None:
        """Serve `num_nodes` clients with Flower's `BasicActorPool`.

        Raises:
            RunError: there is no node.
        """
        import ray

        super().__init__(num_nodes, run_config)
        self._pool = pool
        self._abandoned: set[Any] = set()
        taker = TurnTaker(client_app)
        self._app_fn = ray.put(lambda: taker)  # serialized once; an actor receives what the reference stands for

    def _turns(self, messages: list[Message]) -> Iterator[tuple[Message, ClientTurn]]:
        import ray

        waiting, running = deque(messages), dict[Any, Message]()
        try:
            while waiting or running:
                while waiting and self._pool.is_actor_available():
                    message = waiting.popleft()
                    running[self._submit(message)] = message
                [future], _ = ray.wait([*running, *self._abandoned], num_returns=1)
                if future in self._abandoned:
                    self._abandoned.remove(future)
                    self._pool.add_actor_back_to_pool(future)
                else:
                    yield running.pop(future), self._turn(future)
        finally:
            # The caller may stop early; these actors are busy until then, and nobody waits for what they make.
            self._abandoned.update(running)

    def _submit(self, message: Message) -> Any:
        context = self._context(message.metadata.dst_node_id)
        job = self._app_fn, message, str(context.node_config[PARTITION_ID_KEY]), context
        return self._pool.submit(lambda actor, *arguments: actor.run.remote(*arguments), job)

    def _turn(self, future: Any) -> ClientTurn:
        import ray

        try:
            turn, _ = self._pool.fetch_result_and_return_actor_to_pool(future)
        except ray.exceptions.RayActorError as error:
            raise RunError(
                "Expected the simulation's worker processes to last as long as the run, but one ended while a client "
                "ran in it, often for want of memory. Use --engine local, which needs the memory of one client."
            ) from error
        if isinstance(turn, NufedError):
            raise turn
        return cast("ClientTurn", turn)


def simulate_with_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    num_nodes: int,
    run_config: Mapping[str, Scalar],
    num_cpus_per_client: float = 1,
) -> None:
    """Run a ServerApp in this process and `num_nodes` clients in as many actors as the CPUs allow.

    Both apps find `run_config` in their Context; client i has `partition-id` i in its node config. Actors inherit the
    environment and the import path. Ray's processes end with the run.

    Raises:
        NufedError: raised by either app.
        RunError: there is no node, not enough CPUs, a Ray in this process already, or an actor died.
    """
    with _actors(num_nodes, num_cpus_per_client) as pool:
        grid = RayGrid(pool, client_app, num_nodes=num_nodes, run_config=run_config)
        server_app(grid=grid, context=grid.server_context())


@contextmanager
def _actors(num_nodes: int, num_cpus_per_client: float) -> Iterator[Any]:
    """Start Ray on this machine alone and yield Flower's pool of at most `num_nodes` actors."""
    import ray

    from nufed.deploy.flower_runtime.ray_actors import BasicActorPool, ClientAppActor

    if ray.is_initialized():
        raise RunError("Expected no Ray in this process, but it is running. Call ray.shutdown() first.")
    with environment({**_QUIET, "PYTHONPATH": _import_path()}), _same_sigterm_handler_afterwards():
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            if (num_cpus := _num_cpus()) < num_cpus_per_client:
                raise RunError(
                    f"Expected at least {num_cpus_per_client:g} CPUs, as many as each simulated client is given, but "
                    f"this machine offers {num_cpus:g}. Give each client fewer, or use --engine local."
                )
            pool = BasicActorPool(ClientAppActor, {"num_cpus": num_cpus_per_client}, {})
            pool.add_actors_to_pool(min(pool.actors_capacity, num_nodes))
            yield pool
        finally:
            ray.shutdown()


def _num_cpus() -> float:
    import ray

    return float(ray.cluster_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


def _import_path() -> str:
    """Return what lets an actor import all that this process can."""
    return os.pathsep.join(dict.fromkeys(path or str(Path.cwd()) for path in sys.path))


@contextmanager
def _same_sigterm_handler_afterwards() -> Iterator[None]:
    """Take back Ray's handler of SIGTERM, which ends Ray's processes and this one, when Ray has ended."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
