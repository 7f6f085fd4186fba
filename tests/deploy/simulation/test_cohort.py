"""The engine `cohort` answers every message as the engine `local` does, up to rounding."""

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

import nufed.client.attending
import nufed.deploy.simulation.cohort
import nufed.deploy.simulation.cohort_clients
from nufed.client.app import app as client_app
from nufed.common.config import RunConfig
from nufed.common.data import describe_task
from nufed.common.errors import ConfigError, RunError, WireError
from nufed.common.meta.cohort_curves import Scratch
from nufed.common.meta.estimators import ESTIMATORS, Estimator
from nufed.common.meta.exact import exact
from nufed.common.meta.first_order import first_order
from nufed.common.meta.objective import initial_params
from nufed.common.methods import find_method
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import Settings
from nufed.common.steps.eager_steps import eager_steps
from nufed.common.wire import ClientDescription, EvaluateReply, EvaluateRequest, TrainReply, TrainRequest
from nufed.deploy.experiments.cells import step_cost
from nufed.deploy.simulation.cohort import CohortGrid
from nufed.deploy.simulation.engines import choose_engine
from nufed.deploy.simulation.in_process import InProcessGrid
from nufed.deploy.simulation.simulated_grid import FIRST_NODE_ID
from nufed.server.app import build_server_app
from nufed.server.run import ServerOptions
from tests.common.meta.problems import relative_difference

CONFIG = RunConfig().updated(
    {
        "data.num-clients": 6,
        "data.num-new-clients": 2,
        "model.hidden-sizes": "12,7",
        "model.dtype": "float64",
        "method.num-inner-steps": 2,
        "method.num-local-steps": 3,
        "method.batch-size": 8,
        "evaluation.num-adapt-steps": 4,
        "evaluation.primary-step": 2,
    }
)

CLOSING = {"evaluation.shots": "2,3", "evaluation.global-examples": 9}
BATCHED_METHODS = ["anil", "meta-sgd", "aruba", "fedbabu", "fedprox", "pfedme", "ditto", "fedrep", "lg-fedavg"]


def preset(name):
    return dict(find_method(name).options())


def grid_of(kind, config):
    num_nodes = config.data.num_clients + config.data.num_new_clients
    return kind(client_app, num_nodes=num_nodes, run_config=config.flat())


def model_of(config):
    task = describe_task(config.data, Settings())
    return initial_params(model_params(build_model(config.model, task, seed=config.seed)), config.method)


def messages(config, request, message_type, num_nodes=None):
    records = request(model_of(config), 5).to_records()
    count = config.data.num_clients + config.data.num_new_clients if num_nodes is None else num_nodes
    return [Message(records, FIRST_NODE_ID + number, message_type) for number in range(count)]


def replies(kind, config, request, message_type):
    """Return the replies by node."""
    received = grid_of(kind, config).send_and_receive(messages(config, request, message_type))
    return {reply.metadata.src_node_id: reply for reply in received}


def assert_trained_alike(config, tolerance):
    ours, expected = (replies(kind, config, TrainRequest, "train") for kind in (CohortGrid, InProcessGrid))
    assert sorted(ours) == sorted(expected)
    for node in expected:
        left, right = (TrainReply.from_records(side[node].content) for side in (ours, expected))
        assert left.num_examples == right.num_examples
        assert list(left.params) == list(right.params)
        assert relative_difference(left.params, right.params) < tolerance
        for name, value in right.metrics.items():
            assert name == "seconds" or left.metrics[name] == pytest.approx(value, rel=10 * tolerance), name


def assert_judged_alike(config, tolerance):
    is_last = config.evaluation.shots != ""
    request = partial(EvaluateRequest, shots=(2, 3), all_metrics=True) if is_last else EvaluateRequest
    ours, expected = (replies(kind, config, request, "evaluate") for kind in (CohortGrid, InProcessGrid))
    assert sorted(ours) == sorted(expected)
    for node in expected:
        left, right = (EvaluateReply.from_records(side[node].content) for side in (ours, expected))
        assert left.num_examples == right.num_examples
        assert sorted(left.metrics) == sorted(right.metrics)
        for name, value in right.metrics.items():
            assert left.metrics[name] == (value if "accuracy" in name else pytest.approx(value, rel=tolerance)), name


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "nufed.cohort")
    return caplog


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_training_replies_are_those_of_the_local_engine(estimator, dtype, tolerance, said):
    """Models, counts and metrics, for all estimators and both precisions, through the same messages."""
    config = CONFIG.updated({"method.estimator": estimator, "model.dtype": dtype})

    # Differences of gradients over a displacement of 1e-2 amplify the rounding of float32 a hundredfold.
    assert_trained_alike(config, 10 * tolerance if estimator == "hessian-free" else tolerance)

    assert bool(said.text) == (ESTIMATORS[estimator].of_steps is None)


def halfway(steps, method):
    """Return an estimator of no use: the mean of the exact gradient and the first-order one."""

    def meta_gradient(params, batches):
        full, first = (make(steps)(params, batches) for make in (exact, first_order))
        mean = {name: 0.5 * (full.gradient[name] + first.gradient[name]) for name in params}
        return replace(full, gradient=mean)

    return meta_gradient


@pytest.mark.parametrize("is_batched", [True, False])
def test_an_estimator_that_is_registered_in_one_place_works_in_every_engine(is_batched, said, monkeypatch):
    """Batched if it is written in the inner step; else one client at a time, which is said once and for what it is."""
    how = {"of_steps": halfway} if is_batched else {"of_loss": lambda loss, _: halfway(eager_steps(loss, 0.05), _)}
    monkeypatch.setitem(ESTIMATORS, "halfway", Estimator("made up", True, lambda nu: 3.0 * nu, **how))
    config = CONFIG.updated({"method.estimator": "halfway"})

    grid = grid_of(CohortGrid, config)
    for _ in range(2):
        grid.send_and_receive(messages(config, TrainRequest, "train"))

    expected = "Clients run one at a time: method.estimator=halfway cannot be computed for several at once."
    assert [record.getMessage() for record in said.records] == ([] if is_batched else [expected])
    assert_trained_alike(config, 1e-10 if is_batched else 1e-300)
    assert choose_engine(config) == ("cohort" if is_batched else "local")
    assert step_cost(config) == 6.0


@pytest.mark.parametrize(
    "changes",
    [
        {"method.batch-size": 0},
        {"method.outer-batch-size": 0, "method.outer-holdout-fraction": 0.3},
        {"model.name": "linear"},
        {"data.source": "sinusoid", "data.partition": "by-user"},
        {"data.source": "quadratic", "data.partition": "by-user", "model.name": "linear", "method.inner-lr": 0.01},
        *map(preset, BATCHED_METHODS),
    ],
    ids=str,
)
def test_other_data_models_and_methods_are_trained_alike(changes, said):
    """Ragged batches, regression, one layer without a bias; methods whose steps are others."""
    assert_trained_alike(CONFIG.updated(changes), 1e-10)

    assert said.text == ""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.dtype": "float32"},
        {"evaluation.adapt-batch-size": 8},
        {"evaluation.adapt-lr": 0.3, "evaluation.num-adapt-steps": 1, "evaluation.primary-step": 0},
        {"evaluation.num-adapt-steps": 0, "evaluation.primary-step": 0},
        {"data.validation-fraction": 0.0},
        {"model.hidden-sizes": ""},
        {"model.dropout": 0.3},
        {"data.source": "sinusoid", "data.partition": "by-user"},
        *map(preset, [*BATCHED_METHODS, "local-only", "imaml"]),
        {**preset("anil"), "method.head": "1,3", "evaluation.adapt-batch-size": 8},
        {**preset("meta-sgd"), "method.personal-strength": 0.5},
        {**preset("anil"), "federation.training": "local", "federation.num-rounds": 3, **CLOSING},
    ],
    ids=str,
)
def test_adaptation_curves_are_those_of_the_local_engine(changes, said):
    """Losses up to rounding, and the same counts of correct answers."""
    config = CONFIG.updated(changes)

    assert_judged_alike(config, 1e-10 if config.model.dtype == "float64" else 2e-5)

    assert said.text == ""


def test_two_runs_are_the_same_to_the_last_bit():
    """Rounding differs from the engine `local`, and from nothing else."""
    config = CONFIG.updated({"model.dtype": "float32"})

    first, second = (replies(CohortGrid, config, TrainRequest, "train") for _ in range(2))

    assert [first[node].content["arrays"] == second[node].content["arrays"] for node in first] == [True] * 8


def test_small_memory_means_several_computations(monkeypatch):
    """Chunks change nothing that is not rounding."""
    monkeypatch.setitem(nufed.deploy.simulation.cohort_clients.MEMORY, "cpu", 1)

    assert_trained_alike(CONFIG, 1e-10)
    assert_judged_alike(CONFIG, 1e-10)


def test_memory_that_chunks_share_leaves_nothing_of_one_in_the_next(monkeypatch, said):
    """Whatever is in the memory that is lent, no client's curves have it in them."""
    lend, lent = Scratch.take, []

    def full_of_nan(scratch, name, *arguments):
        lent.append(name)
        return lend(scratch, name, *arguments).fill_(float("nan"))

    monkeypatch.setattr(Scratch, "take", full_of_nan)
    changes = {"data.num-clients": 21, "model.hidden-sizes": "80,7"}

    assert_judged_alike(CONFIG.updated(changes), 1e-10)

    assert sorted(set(lent)) == ["products", "rows"]
    assert said.text == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model.dropout": 0.3}, "Sequential draws random numbers"),
        ({"model.name": "cnn"}, "would be slower together on this device"),
    ],
)
def test_whom_it_cannot_batch_it_runs_one_at_a_time(changes, reason, said):
    """Then the replies are the local engine's to the last bit, and the reason is logged once."""
    config = CONFIG.updated(changes)
    ours, expected = (replies(kind, config, TrainRequest, "train") for kind in (CohortGrid, InProcessGrid))

    models = [{node: reply.content["arrays"] for node, reply in side.items()} for side in (ours, expected)]

    assert models[0] == models[1]
    assert said.text.count(reason) == 1


def test_an_error_is_its_clients_alone(monkeypatch):
    """A client whose data cannot be had by an unexpected error fails; the others are trained together."""
    sound = nufed.deploy.simulation.cohort.workplace

    def workplace(run_config, node_config, *rest):
        if node_config["partition-id"] == 2:
            raise OSError("disk is gone")
        return sound(run_config, node_config, *rest)

    monkeypatch.setattr(nufed.deploy.simulation.cohort, "workplace", workplace)
    monkeypatch.setattr(nufed.client.attending, "workplace", workplace)

    received = replies(CohortGrid, CONFIG, TrainRequest, "train")

    assert [node - FIRST_NODE_ID for node, reply in received.items() if reply.has_error()] == [2]
    assert "disk is gone" in received[FIRST_NODE_ID + 2].error.reason
    assert len(received) == 8


def test_a_computation_that_fails_is_made_client_by_client(monkeypatch, said):
    """So that whoever caused it answers for it, and nobody else."""

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(nufed.deploy.simulation.cohort_clients, "stacked_update", fail)

    ours, expected = (replies(kind, CONFIG, TrainRequest, "train") for kind in (CohortGrid, InProcessGrid))

    assert [ours[node].content["arrays"] == expected[node].content["arrays"] for node in expected] == [True] * 8
    assert said.text.count("the batched computation failed (out of memory)") == 1


def test_a_defect_of_ours_is_not_taken_for_a_clients(monkeypatch):
    """Only what a computation may raise leads to another try."""

    def fail(*_):
        raise AssertionError("defect")

    monkeypatch.setattr(nufed.deploy.simulation.cohort_clients, "stacked_update", fail)

    with pytest.raises(AssertionError, match="defect"):
        replies(CohortGrid, CONFIG, TrainRequest, "train")


def test_nobody_asked_is_nobody_answering():
    """An empty phase is no error."""
    assert grid_of(CohortGrid, CONFIG).send_and_receive([]) == []


def test_messages_of_other_types_are_answered_by_the_app():
    """A query among training messages is a query."""
    asked = messages(CONFIG, TrainRequest, "train", num_nodes=3)
    asked[1] = Message(RecordDict(), FIRST_NODE_ID + 1, "query")

    received = {reply.metadata.src_node_id: reply for reply in grid_of(CohortGrid, CONFIG).send_and_receive(asked)}

    assert ClientDescription.from_records(received[FIRST_NODE_ID + 1].content).group == "participating"
    assert [TrainReply.from_records(received[FIRST_NODE_ID + number].content).num_examples > 0 for number in (0, 2)]


def test_clients_may_be_sent_different_models():
    """Each trains what it was sent."""
    params = model_of(CONFIG)
    models = [{name: tensor * scale for name, tensor in params.items()} for scale in (1.0, 2.0)]

    received = [
        grid_of(kind, CONFIG).send_and_receive(
            Message(TrainRequest(model, 1).to_records(), FIRST_NODE_ID + number, "train")
            for number, model in enumerate(models)
        )
        for kind in (CohortGrid, InProcessGrid)
    ]

    ours, expected = (
        {reply.metadata.src_node_id: TrainReply.from_records(reply.content).params for reply in side}
        for side in received
    )
    assert max(relative_difference(ours[node], expected[node]) for node in expected) < 1e-10


def test_a_clients_own_explanation_ends_the_run():
    """As in the engine `local`."""
    grid = grid_of(CohortGrid, CONFIG.updated({"data.source": "nowhere"}))

    with pytest.raises(ConfigError, match="nowhere"):
        grid.send_and_receive(messages(CONFIG, TrainRequest, "train"))


def test_a_message_without_a_model_ends_the_run():
    """As in the engine `local`: the server of this very run made it."""
    grid = grid_of(CohortGrid, CONFIG)

    with pytest.raises(WireError, match="expected one record of arrays, got 0"):
        grid.send_and_receive([Message(RecordDict(), FIRST_NODE_ID, "train")])


def test_other_client_apps_are_refused():
    """The engine does what our app does without calling it."""
    with pytest.raises(RunError, match=r"NuFed's own ClientApp.*Use --engine local"):
        CohortGrid(ClientApp(), num_nodes=1, run_config={})


def test_a_whole_run_is_conducted(tmp_path):
    """Rounds, evaluations and the run folder, with a strategy and a server that know nothing of it."""
    config = CONFIG.updated({"federation.num-rounds": 2, "evaluation.interval": 1})
    curves = []
    for kind in (CohortGrid, InProcessGrid):
        grid = grid_of(kind, config)
        out = tmp_path / kind.__name__
        build_server_app(ServerOptions(out=out))(grid=grid, context=grid.server_context())
        curves.append((next(out.iterdir()) / "clients.csv").read_text())

    assert curves[0].count("\n") == curves[1].count("\n") > 8


def test_a_head_that_is_to_rest_rests():
    config = CONFIG.updated({"method.trained-part": "body"})
    sent = model_of(config)

    received = replies(CohortGrid, config, TrainRequest, "train")

    head = [name for name in sent if name.startswith("5.")]
    for reply in received.values():
        params = TrainReply.from_records(reply.content).params
        assert all(torch.equal(params[name], sent[name]) for name in head)
        assert not torch.equal(params["1.weight"], sent["1.weight"])
