"""The engine `processes` leaves the run that the engine `local` leaves, and its workers end with it."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import nufed.deploy.simulation.process_pool as pool
from nufed.client.app import app as client_app
from nufed.common.errors import ConfigError, DataError, RunError
from nufed.deploy.simulation.in_process import simulate_in_process
from nufed.deploy.simulation.process_pool import ProcessGrid, simulate_in_processes
from nufed.deploy.simulation.simulated_grid import FIRST_NODE_ID
from nufed.server.app import build_server_app
from nufed.server.run import ServerOptions
from tests.deploy.simulation.test_cohort import CONFIG

pytestmark = pytest.mark.system

toy_app = ClientApp()
TOY = "tests.system.test_process_pool:toy_app"


@toy_app.train()
def toy(message, context):
    """Count turns, and do what the message says."""
    order = message.content["order"]["do"]
    turns = context.state["turns"]["n"] + 1 if "turns" in context.state else 1
    context.state["turns"] = MetricRecord({"n": turns})
    if order == 1:
        raise ValueError("boom")
    if order == 2:
        raise DataError("no data")
    if order == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return Message(RecordDict({"turns": MetricRecord({"n": turns, "pid": os.getpid()})}), reply_to=message)


def order(do, node=0):
    return Message(RecordDict({"order": MetricRecord({"do": int(do)})}), FIRST_NODE_ID + node, "train")


@pytest.fixture(scope="module")
def toy_workers():
    with pool._workers([None] * 2, TOY) as workers:
        yield workers


@pytest.fixture
def toy_grid(toy_workers):
    return ProcessGrid(toy_workers, num_nodes=4, run_config={"seed": 1})


def test_models_are_those_of_the_local_engine_to_the_last_bit(tmp_path):
    """A whole run: rounds, evaluations, new clients, all files but times and paths."""
    config = CONFIG.updated({"federation.num-rounds": 2, "evaluation.interval": 1})
    count = config.data.num_clients + config.data.num_new_clients
    for name, simulate, app in (
        ("a", simulate_in_process, client_app),
        ("b", simulate_in_processes, "nufed.client.app:app"),
    ):
        server_app = build_server_app(ServerOptions(out=tmp_path / name))
        simulate(server_app, app, num_nodes=count, run_config=config.flat())

    left, right = (next((tmp_path / name).iterdir()) for name in "ab")
    for name in ("model.safetensors", "clients.csv"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def test_clients_are_spread_over_the_workers_and_keep_their_state(toy_grid):
    """State follows the client from worker to worker; both workers work."""
    replies = [toy_grid.send_and_receive([order(0, node) for node in range(4)]) for _ in range(2)]

    turns = [sorted(reply.content["turns"]["n"] for reply in phase) for phase in replies]
    assert turns == [[1] * 4, [2] * 4]
    assert len({reply.content["turns"]["pid"] for phase in replies for reply in phase}) == 2


def test_an_exception_is_its_clients_alone(toy_grid):
    """The others go on, and the failed turn leaves no state."""
    replies = {r.metadata.src_node_id: r for r in toy_grid.send_and_receive([order(n == 1, n) for n in range(4)])}
    [again] = toy_grid.send_and_receive([order(0, 1)])

    assert [replies[FIRST_NODE_ID + node].has_error() for node in range(4)] == [False, True, False, False]
    assert "boom" in replies[FIRST_NODE_ID + 1].error.reason
    assert again.content["turns"]["n"] == 1


def test_a_clients_own_explanation_ends_the_run_and_the_grid_stays_usable(toy_grid):
    """What the others were busy with is thrown away, not taken for a later reply."""
    with pytest.raises(DataError, match="no data"):
        toy_grid.send_and_receive([order(2 * (node == 0), node) for node in range(4)])

    assert len(toy_grid.send_and_receive([order(0, node) for node in range(4)])) == 4


def test_replies_that_nobody_waits_for_are_thrown_away(toy_grid):
    """A caller that stops early does not see them in its next phase."""
    stream = toy_grid.stream_replies([order(0, node) for node in range(4)])
    next(stream)
    stream.close()

    asked = [order(0, 3)]
    [reply] = toy_grid.send_and_receive(asked)

    assert reply.metadata.reply_to_message_id == asked[0].metadata.message_id


def test_workers_end_with_the_run_and_one_that_dies_ends_it():
    """With a word on what to do, and not with a wait; no process is left."""
    with pool._workers([None] * 2, TOY) as workers:
        grid = ProcessGrid(workers, num_nodes=2, run_config={})
        pids = {reply.content["turns"]["pid"] for reply in grid.send_and_receive([order(0, 0), order(0, 1)])}
        with pytest.raises(RunError, match=r"one ended, often for want of memory\. Use --engine local"):
            grid.send_and_receive([order(3, 0)])

    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_worker_that_does_not_end_is_ended(monkeypatch):
    """Patience has an end."""
    monkeypatch.setattr(pool, "PATIENCE", 0.1)
    started = []

    def start(*_, **__):
        process = subprocess.Popen(["sleep", "60"])
        started.append(process)
        return process, pool.Connection(os.open(os.devnull, os.O_RDWR))

    monkeypatch.setattr(pool, "_start", start)
    with pool._workers([None], "unused"):
        pass

    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("tests.system.test_process_pool:order", "but found function"),
        ("tests.system.test_process_pool", "but found NoneType"),
        ("tests.system.nowhere:app", "No module named"),
    ],
)
def test_what_is_no_client_app_is_refused_before_anything_starts(reference, reason):
    with pytest.raises(ConfigError, match=reason):
        simulate_in_processes(build_server_app(), reference, num_nodes=1, run_config={})


def test_as_many_workers_as_processors_and_threads_allow(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))

    counts = []
    for threads in ("1", "2", "4", "64"):
        monkeypatch.setenv("NUFED_NUM_THREADS", threads)
        counts.append(pool.num_default_processes())

    assert counts == [6, 3, 1, 1]
