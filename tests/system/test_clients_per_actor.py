"""Several clients at once in each worker: what the engine `cohort` computes, however many workers there are."""

import logging

import pytest

import nufed.deploy.simulation.process_pool as pool
from nufed.client.app import app as client_app
from nufed.common.errors import ConfigError, DataError, RunError
from nufed.common.steps.cautions import Caution, caution
from nufed.common.wire import EvaluateRequest, TrainRequest
from nufed.deploy.simulation.actor_turns import Portions
from nufed.deploy.simulation.cohort import CohortGrid
from nufed.deploy.simulation.engine_options import EngineOptions
from nufed.deploy.simulation.in_process import InProcessGrid
from nufed.deploy.simulation.process_pool import ProcessGrid, simulate_in_processes
from tests.deploy.simulation.test_cohort import CONFIG, messages

pytestmark = pytest.mark.system

NUM_NODES = CONFIG.data.num_clients + CONFIG.data.num_new_clients


@pytest.fixture(scope="module")
def workers():
    with pool._workers([None, None], "nufed.client.app:app", together=True) as connections:
        yield connections


def answers(grid, config, request, message_type):
    """Return what each client answered, but for its time."""
    found = {}
    for reply in grid.send_and_receive(messages(config, request, message_type)):
        metrics = {name: value for name, value in reply.content["metrics"].items() if name != "seconds"}
        found[reply.metadata.src_node_id] = reply.content.array_records, metrics
    return found


def grid_of(workers, config, clients_per_actor):
    return ProcessGrid(workers, num_nodes=NUM_NODES, run_config=config.flat(), clients_per_actor=clients_per_actor)


def engine(kind, config):
    return kind(client_app, num_nodes=NUM_NODES, run_config=config.flat())


@pytest.mark.parametrize("clients_per_actor", [NUM_NODES, 1000])
def test_all_clients_in_one_job_are_the_engine_cohort_to_the_last_bit(workers, clients_per_actor, caplog):
    grid = grid_of(workers, CONFIG, clients_per_actor)

    for request, message_type in ((TrainRequest, "train"), (EvaluateRequest, "evaluate")):
        expected = answers(engine(CohortGrid, CONFIG), CONFIG, request, message_type)
        assert answers(grid, CONFIG, request, message_type) == expected

    [said] = [text for text in caplog.messages if "fit into one actor" in text]
    assert said.startswith(f"All {NUM_NODES} clients of a round fit into one actor of 2")


def test_numbers_follow_from_the_clients_of_a_job_and_not_from_the_number_of_workers(workers):
    two, one = (answers(grid_of(each, CONFIG, 3), CONFIG, TrainRequest, "train") for each in (workers, workers[:1]))

    assert one == two


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model.dropout": 0.3}, "Sequential draws random numbers"),
        ({"model.name": "cnn"}, "Sequential would be slower together on this device"),
        (
            {"method.objective": "implicit", "method.personal-strength": 1.0},
            "method.objective=implicit cannot be computed for several at once",
        ),
    ],
    ids=str,
)
def test_whom_it_cannot_batch_it_runs_one_at_a_time_and_says_so_once(workers, changes, reason, caplog):
    caplog.set_level(logging.WARNING, "nufed.cohort")
    config = CONFIG.updated({**changes, "method.num-inner-steps": 1})
    grid = grid_of(workers, config, 2)

    found = [answers(grid, config, TrainRequest, "train") for _ in range(2)]

    expected = answers(engine(InProcessGrid, config), config, TrainRequest, "train")
    assert found[0] == found[1] == expected
    assert caplog.messages.count(f"Clients run one at a time: {reason}.") == 1


def test_what_is_warned_of_in_a_worker_is_warned_of_here(workers):
    config = CONFIG.updated({"method.estimator": "hessian-free", "model.activation": "relu", "model.dtype": "float32"})
    caution.cache_clear()

    with pytest.warns(Caution, match="hessian-free"):
        answers(grid_of(workers, config, 4), config, TrainRequest, "train")


def test_a_clients_own_explanation_ends_the_run(workers):
    config = CONFIG.updated({"data.source": "npz:nowhere.npz"})

    with pytest.raises(DataError, match=r"nowhere\.npz"):
        answers(grid_of(workers, config, 4), config, TrainRequest, "train")


def test_other_apps_are_refused_before_anything_starts():
    told = EngineOptions(clients_per_actor=2)

    with pytest.raises(RunError, match="NuFed's own ClientApp"):
        simulate_in_processes(None, "tests.system.test_process_pool:toy_app", num_nodes=2, run_config={}, options=told)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_numbers_that_are_none_are_refused(number):
    with pytest.raises(ConfigError, match="--clients-per-actor"):
        EngineOptions(clients_per_actor=number)


@pytest.mark.parametrize("engine", ["local", "cohort", "auto"])
def test_engines_without_workers_refuse_it(engine):
    with pytest.raises(ConfigError, match="--clients-per-actor is for --engine ray or processes"):
        EngineOptions(clients_per_actor=2).check(engine)


@pytest.mark.parametrize(
    ("count", "most", "lengths"),
    [(10, 4, [3, 3, 4]), (8, 4, [4, 4]), (9, 8, [4, 5]), (3, 100, [3]), (5, 1, [1] * 5), (0, 4, [])],
)
def test_jobs_are_as_large_as_each_other(count, most, lengths):
    asked = messages(CONFIG, TrainRequest, "train", num_nodes=1) * count

    jobs = Portions(most).of(asked, 1)

    assert [len(job) for job in jobs] == lengths
