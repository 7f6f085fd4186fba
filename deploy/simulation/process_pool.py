"""Simulation in several processes of this machine, without Ray: a ClientApp in each, one client or several at a time.

A client's reply depends on its message, its configuration and the threads of its process (`NUFED_NUM_THREADS`), all of
which the workers share with the engine `local`; so the two leave the same run, bit for bit.
"""

import math
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

from flwr.app import Message
from flwr.serverapp import ServerApp

from nufed.common.config import Scalar
from nufed.common.errors import ConfigError, NufedError, RunError
from nufed.common.settings import process_settings
from nufed.deploy.simulation.actor_turns import Done, Job, Portions
from nufed.deploy.simulation.cohort import check_own
from nufed.deploy.simulation.engine_options import EngineOptions
from nufed.deploy.simulation.process_worker import TOGETHER, load_client_app
from nufed.deploy.simulation.simulated_grid import ClientTurn, SimulatedGrid

PATIENCE = 5.0
"""Seconds that a worker has to end once nobody asks it any more."""


class ProcessGrid(SimulatedGrid):
    """A Grid that runs each message's client in an idle worker; holds who is busy with what."""

    def __init__(
        self,
        workers: Sequence[Connection],
        *,
        num_nodes: int,
        run_config: Mapping[str, Scalar],
        clients_per_actor: int = 1,
    ) -> None:
        """Serve `num_nodes` clients with the workers at the other ends of these connections.

        Raises:
            RunError: there is no node.
        """
        super().__init__(num_nodes, run_config)
        self._portions = Portions(clients_per_actor)
        self._num_workers = len(workers)
        self._idle = list(workers)
        self._abandoned: set[Connection] = set()

    def _turns(self, messages: list[Message]) -> Iterator[tuple[Message, ClientTurn]]:
        waiting = deque(self._portions.of(messages, self._num_workers))
        running: dict[Connection, Sequence[Message]] = {}
        try:
            while waiting or running:
                while waiting and self._idle:
                    worker, portion = self._idle.pop(), waiting.popleft()
                    running[worker] = portion
                    _send(worker, [(message, self._context(message.metadata.dst_node_id)) for message in portion])
                for worker in cast("list[Connection]", wait([*running, *self._abandoned])):
                    answer = _receive(worker)
                    self._idle.append(worker)
                    if worker in self._abandoned:
                        self._abandoned.remove(worker)
                    elif isinstance(answer, NufedError):
                        del running[worker]
                        raise answer
                    else:
                        self._portions.repeat(answer)
                        yield from zip(running.pop(worker), answer.turns, strict=True)
        finally:
            # The caller may stop early; these workers are busy until then, and nobody waits for what they make.
            self._abandoned.update(running)


def simulate_in_processes(  # noqa: PLR0913 - all by name
    server_app: ServerApp,
    client_app: str,
    *,
    num_nodes: int,
    run_config: Mapping[str, Scalar],
    num_processes: int | None = None,
    options: EngineOptions | None = None,
) -> None:
    """Run a ServerApp in this process and `num_nodes` clients in worker processes.

    Both apps find `run_config` in their Context; client i has `partition-id` i in its node config. Workers inherit the
    environment and the import path, and end with the run.

    Args:
        server_app: the server.
        client_app: `module:name` of the ClientApp.
        num_nodes: clients.
        run_config: the run's options.
        num_processes: workers; None is as many as the processors can run with `NUFED_NUM_THREADS` threads each.
        options: what each worker is given of processors, GPUs and clients.

    Raises:
        NufedError: raised by either app.
        ConfigError: workers are to share GPUs, but there is none, or the processors are too few for one worker.
        RunError: there is no node, a worker died, or several clients of another app than NuFed's are to be computed at
            once.
    """
    options = options or EngineOptions()
    app = load_client_app(client_app)  # what is wrong with it is said here, before anything starts
    if together := options.clients_per_actor > 1:
        check_own(app)
    devices = worker_devices(options, num_processes)[: math.ceil(num_nodes / options.clients_per_actor)]
    with _workers(devices, client_app, together=together) as workers:
        grid = ProcessGrid(
            workers, num_nodes=num_nodes, run_config=run_config, clients_per_actor=options.clients_per_actor
        )
        server_app(grid=grid, context=grid.server_context())


def num_default_processes() -> int:
    """Return how many processes of `NUFED_NUM_THREADS` threads this process's processors can run at once."""
    return max(1, len(os.sched_getaffinity(0)) // process_settings().num_threads)


def worker_devices(options: EngineOptions, num_processes: int | None = None) -> list[str | None]:
    """Return the device of each worker process, GPUs in turn; None for the one that `NUFED_DEVICE` names.

    Args:
        options: what each worker is given.
        num_processes: workers at most; None is as many as the processors can run.

    Raises:
        ConfigError: there is no GPU, or there are fewer processors than one worker is given.
    """
    most = num_default_processes() if num_processes is None else num_processes
    if options.cpus_per_client is not None:
        num_cpus = len(os.sched_getaffinity(0))
        if options.cpus_per_client > num_cpus:
            raise ConfigError(
                f"--cpus-per-client={options.cpus_per_client:g} is more than this machine's {num_cpus} processors. "
                "Give each client fewer."
            )
        most = int(num_cpus / options.cpus_per_client + 1e-9)
    if not options.gpus_per_client:
        return [None] * most
    import torch

    num_gpus = torch.cuda.device_count()
    if num_gpus == 0:
        raise ConfigError(
            f"--gpus-per-client={options.gpus_per_client:g} needs a GPU that torch can use, but this machine has none "
            f"of those, and {len(os.sched_getaffinity(0))} processors. Leave it out."
        )
    room = num_gpus * int(1 / options.gpus_per_client + 1e-9)
    return [f"cuda:{index % num_gpus}" for index in range(min(most, room))]


@contextmanager
def _workers(devices: Sequence[str | None], client_app: str, *, together: bool = False) -> Iterator[list[Connection]]:
    """Start worker processes and yield the connections to them; inside the block they live, after it they are gone."""
    processes: list[subprocess.Popen[bytes]] = []
    connections: list[Connection] = []
    try:
        for device in devices:
            process, connection = _start(client_app, device, together=together)
            processes.append(process)
            connections.append(connection)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(client_app: str, device: str | None, *, together: bool) -> tuple["subprocess.Popen[bytes]", Connection]:
    ours, theirs = socket.socketpair()
    with theirs:
        module = "nufed.deploy.simulation.process_worker"
        command = [sys.executable, "-P", "-m", module, str(theirs.fileno()), client_app, *TOGETHER[: int(together)]]
        own = {} if device is None else {"NUFED_DEVICE": device}
        environment = {**os.environ, **own, "PYTHONPATH": _import_path()}
        # In a session of its own, so that Ctrl-C reaches this process alone, which then writes down what there is.
        process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True)
    return process, Connection(ours.detach())


def _import_path() -> str:
    """Return what lets a worker import all that this process can."""
    return os.pathsep.join(dict.fromkeys(path or str(Path.cwd()) for path in sys.path))


def _send(worker: Connection, job: Job) -> None:
    try:
        worker.send(job)
    except OSError as error:
        raise RunError(_DIED) from error


def _receive(worker: Connection) -> Done | NufedError:
    try:
        return cast("Done | NufedError", worker.recv())
    except (EOFError, OSError) as error:
        raise RunError(_DIED) from error


_DIED = (
    "Expected the simulation's worker processes to last as long as the run, but one ended, often for want of memory. "
    "Use --engine local, which needs the memory of one client at a time."
)
