"""Curves over numbers of support examples: the same from every engine, on one test split, told apart and counted."""

import json

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord, RecordDict

import nufed
from nufed.client.shots import shots_of
from nufed.client.workplace import workplace
from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, WireError
from nufed.common.message_schema import CurveShape
from nufed.common.metric_looks import look_of
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import Settings
from nufed.common.wire import EvaluateReply, EvaluateRequest
from nufed.server.adaptation_curves import ClientCurves
from nufed.server.outcome import earlier_curves
from nufed.server.shot_curves import ShotCurves
from nufed.server.shots import shots_summary
from tests.client.deployed import ask
from tests.common.data.parkinson import parkinson

LOOKS = {name: look_of(name) for name in ("loss", "accuracy")}
RUN = RunConfig().updated(
    {
        "data.num-clients": 4,
        "data.num-new-clients": 2,
        "evaluation.num-adapt-steps": 3,
        "evaluation.primary-step": 3,
        "evaluation.shots": "1,5,1000",
    }
)
NODE = {"data": "digits#1/4", "client-id": "x"}


@pytest.fixture(scope="module")
def runs():
    options = {"num_clients": 4, "num_new_clients": 2, "num_rounds": 2, "num_adapt_steps": 3, "primary_step": 3}
    options |= {"shots": [5, 1, 1000], "progress": False}
    return {engine: nufed.simulate("digits", engine=engine, **options) for engine in ("local", "cohort")}


def test_every_engine_draws_the_same_curves_and_all_examples_give_the_usual_one(runs):
    local, cohort = runs["local"].shots, runs["cohort"].shots
    curves = runs["local"].curves().query("split == 'test' and metric in ['accuracy', 'loss']")  # no constant answer's
    usual = curves.set_index(["client", "metric", "step"])["value"]

    assert len(local) == 6 * 3 * 2 * 4  # clients, numbers of examples, metrics, steps
    np.testing.assert_allclose(local["value"], cohort["value"], rtol=1e-4, atol=1e-5)
    whole = local[local["shots"] == 1000].set_index(["client", "metric", "step"])["value"]
    assert whole.sort_index().equals(usual.sort_index())
    one = local[local["shots"] == 1].set_index(["client", "metric", "step"])["value"].sort_index()
    assert (one.xs(0, level="step") == usual.sort_index().xs(0, level="step")).all()
    assert (one.xs(3, level="step") != usual.sort_index().xs(3, level="step")).any()


def test_summary_figure_and_table_say_how_groups_fare_and_who_has_fewer(runs):
    run = runs["local"]
    shots = json.loads((run.path / "summary.json").read_text())["shots"]

    assert list(shots["participating"]) == list(shots["new"]) == ["1", "5", "1000"]
    of_five = shots["new"]["5"]
    frame = run.shots.query("group == 'new' and shots == 5 and metric == 'accuracy' and step == 3")
    assert of_five["accuracy"][3] == pytest.approx(frame["value"].mean())
    assert of_five["worst_decile"][3] == pytest.approx(frame["value"].min())
    assert (of_five["num_clients"], of_five["short"], of_five["without"], of_five["num_support"]) == (2, 0, 0, 10.0)
    assert shots["new"]["1000"]["short"] == 2
    assert (run.path / "shots.png").read_bytes().startswith(b"\x89PNG")
    known = {client.client_id: client for client in earlier_curves(run.path)}
    assert known["new-000"].shots[5].curves["accuracy"][3] in frame["value"].to_list()


def test_fewer_examples_are_among_more_and_the_test_split_is_one():
    place = workplace(RUN.flat(), NODE, Settings())

    few, more = (shot.place.data for shot in shots_of(place, (1, 5)))

    rows = {tuple(row.flatten().tolist()) for row in more.support.inputs}
    assert {tuple(row.flatten().tolist()) for row in few.support.inputs} < rows
    assert few.test is more.test is place.data.test


@pytest.mark.filterwarnings("ignore")
def test_a_scaling_of_the_clients_own_knows_the_few_examples_alone():
    """One visit of a patient tells its level and no deviation."""
    patients = parkinson(4, 12)
    options = {"num_clients": 3, "num_new_clients": 1, "num_rounds": 1, "data__target_scale": "local"}
    run = nufed.simulate(patients, "mlp", shots=[1, 4], progress=False, **options)

    start = run.shots.query("step == 0 and metric == 'loss'").set_index(["client", "shots"])["value"]
    assert all(start[client, 1] != start[client, 4] for client in run.clients["client"])


def test_a_deployed_client_draws_what_the_request_asks_for():
    """The same numbers of examples as in a simulation, by the message alone."""
    place = workplace(RUN.flat(), NODE, Settings())
    params = model_params(build_model(RUN.model, place.task, seed=3))

    asked, unasked = (ask("evaluate", RUN, NODE, params, shots=shots).content for shots in ((1, 5), ()))

    reply = EvaluateReply.from_records(asked, CurveShape(4, "classification", LOOKS, "accuracy", shots=(1, 5)))
    assert reply.metrics["shot-1-num-examples"] < reply.metrics["shot-5-num-examples"] == 10
    assert len(reply.metrics["shot-5-test-accuracy"]) == 4
    assert not [name for name in unasked.metric_records["metrics"] if name.startswith("shot-")]


def test_who_does_not_know_of_shots_is_counted_apart():
    """A client of an earlier version answers with its usual curves."""
    common = {"group": "new", "num_support": 9, "num_test": 5, "test_loss": (1.0, 0.5), "test_accuracy": (0.1, 0.7)}
    shot = ShotCurves(2, is_short=True, curves={"loss": (1.0, 0.8), "accuracy": (0.1, 0.4)})
    clients = [ClientCurves(client_id="a", shots={2: shot}, **common), ClientCurves(client_id="b", **common)]
    evaluation = replace_shots("2")

    found = shots_summary(clients, evaluation, "accuracy")["shots"]

    assert found["participating"] is None
    assert found["new"]["2"] == {
        "num_clients": 1, "without": 1, "short": 1, "num_support": 2.0, "measure": "accuracy",
        "loss": [1.0, 0.8], "accuracy": [0.1, 0.4], "worst_decile": [0.1, 0.4],
    }  # fmt: skip


def replace_shots(shots):
    return RunConfig().updated({"evaluation.shots": shots}).evaluation


GOOD = {"num-examples": 4, "test-loss": [1.0, 0.5], "test-accuracy": [0.1, 0.7]}
SHOT = {"shot-2-num-examples": 3, "shot-2-short": 0, "shot-2-test-loss": [1.0, 0.6], "shot-2-test-accuracy": [0.1, 0.5]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shot-2-test-accuracy": [0.1, 1.5]}, "shot 2: test-accuracy"),
        ({"shot-2-test-loss": [1.0]}, "shot 2: test-loss"),
        ({"shot-2-short": 2}, "shot-2-short"),
        ({"shot-2-num-examples": 0}, "at least 1 example"),
        ({"shot-3-num-examples": 3}, "the run asks for no such shot"),
    ],
)
def test_a_reply_that_does_not_fit_is_refused(changes, words):
    shape = CurveShape(2, "classification", LOOKS, "accuracy", shots=(2,))
    fits = EvaluateReply.from_records(RecordDict({"metrics": MetricRecord({**GOOD, **SHOT})}), shape)
    assert fits.metrics["shot-2-test-loss"] == [1.0, 0.6]

    with pytest.raises(WireError, match=words):
        EvaluateReply.from_records(RecordDict({"metrics": MetricRecord({**GOOD, **SHOT, **changes})}), shape)


@pytest.mark.parametrize("shots", [[0], [2, 2], [-1], [10**8], list(range(1, 40)), [1.5], "1,2"])
def test_a_request_that_does_not_fit_is_refused(shots):
    records = EvaluateRequest({"w": torch.zeros(1)}, 1, final=True, shots=(1, 2)).to_records()
    assert EvaluateRequest.from_records(records).shots == (1, 2)
    records.config_records["config"]["shots"] = shots

    with pytest.raises(WireError, match="shots"):
        EvaluateRequest.from_records(records)


@pytest.mark.parametrize("shots", ["1,1", "0", "1,x", "-1", ",".join(map(str, range(1, 40)))])
def test_an_option_that_does_not_fit_is_refused(shots):
    with pytest.raises(ConfigError, match="shots"):
        replace_shots(shots)
