"""Whole runs of every method over the same client and server code."""

import json

import pytest
import torch

from nufed.client.personalize import adaptation_curves, trained_alone
from nufed.client.workplace import workplace
from nufed.common.config import RunConfig
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.meta_sgd import STEP_SIZE
from nufed.common.method_rules import sequential_training
from nufed.common.methods import METHODS
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import Settings
from nufed.deploy.simulation.engines import simulate
from nufed.server.run import ServerOptions
from nufed.server.run_folder import load_model
from tests.common.meta.problems import relative_difference

SMALL = {
    "data.num-clients": 4,
    "data.num-new-clients": 2,
    "model.hidden-sizes": "12",
    "method.num-local-steps": 3,
    "method.inner-lr": 0.02,
    "federation.num-rounds": 10,
    "evaluation.interval": 0,
    "evaluation.num-adapt-steps": 5,
}
PLAIN = {"method.num-inner-steps", "method.estimator"}
ALIKE = {"fedavgm", "fedadagrad", "fedyogi"}  # as fedadam, whose formula alone is another
OF_OTHER_KINDS = [name for name, method in METHODS.items() if method.overrides.keys() - PLAIN and name not in ALIKE]


def configured(name, **changes):
    return RunConfig().updated({**METHODS[name].options(), **SMALL}).replace(**changes)


def run(out, config, engine="local"):
    simulate(config, ServerOptions(out=out), engine=engine)
    (folder,) = out.iterdir()
    return folder


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def place_of(config, partition=0):
    return workplace(config.flat(), {"partition-id": partition, "num-partitions": 6}, Settings())


@pytest.mark.parametrize("name", OF_OTHER_KINDS)
def test_training_and_adaptation_both_lower_the_loss(name, tmp_path):
    """After adaptation it is lower than before, and lower than that of the initial model, adapted alike."""
    alike = {"data__partition": "dirichlet", "data__dirichlet_alpha": 1.0, "federation__participation_fraction": 1.0}

    trained, untrained = (
        summary(run(tmp_path / str(rounds), configured(name, federation__num_rounds=rounds, **alike)))
        for rounds in (40, 0)
    )

    for group in ("participating", "new"):
        assert trained[group]["loss"][5] < trained[group]["loss"][0]
        assert trained[group]["loss"][5] < untrained[group]["loss"][5]


@pytest.mark.parametrize("name", OF_OTHER_KINDS)
def test_many_clients_at_once_give_the_numbers_of_one_at_a_time(name, tmp_path):
    """Up to rounding; models bit for bit where the engine `cohort` trains clients one at a time."""
    config = configured(name, federation__num_rounds=2)
    folders = [run(tmp_path / engine, config, engine) for engine in ("local", "cohort")]

    models = [load_model(folder)[0] for folder in folders]
    results = [[summary(folder)[group]["loss"] for group in ("participating", "new")] for folder in folders]

    for ours, theirs in zip(*results, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert relative_difference(*models) < 1e-5
    if sequential_training(config):
        assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_where_nothing_is_federated_there_is_no_round_and_the_model_stays_the_initial_one(tmp_path):
    config = configured("local-only")

    folder = run(tmp_path, config)

    params, _ = load_model(folder)
    place = place_of(config)
    initial = model_params(build_model(config.model, place.task, seed=config.seed))
    assert all(torch.equal(params[name], initial[name]) for name in initial)
    assert (summary(folder)["status"], summary(folder)["rounds"]) == ("complete", 0)
    assert not (folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize("partition", [0, 5])
def test_clients_alone_make_as_many_steps_as_a_participating_one_does_on_average(partition):
    """That is r K rounds of τ steps, from the client's own stream of batches; new clients (5) like the others (0)."""
    config = configured("local-only", federation__participation_fraction=0.5)
    place = place_of(config, partition)
    start = model_params(build_model(config.model, place.task, seed=config.seed))

    found = trained_alone(place, start)

    expected = start
    for number in range(1, 6):
        stream = Stream(config.seed, place.data.client_id, number)
        expected = local_update(place.training_loss, expected, place.data.support, config.method, stream).params
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (
        adaptation_curves(place, start)["test-loss"][0]
        != adaptation_curves(place_of(configured("fedavg"), partition), start)["test-loss"][0]
    )


def test_learned_step_sizes_are_averaged_and_saved_with_the_model(tmp_path):
    config = configured("meta-sgd")

    params, _ = load_model(run(tmp_path, config))

    sizes = [tensor for name, tensor in params.items() if name.startswith(STEP_SIZE)]
    assert len(sizes) == len(params) / 2
    assert all(bool((size != config.method.inner_lr).any()) for size in sizes)


def test_reptile_with_a_whole_step_is_fedavg_bit_for_bit(tmp_path):
    whole = configured("reptile", federation__server_lr=1.0, federation__num_rounds=2)

    models = [
        load_model(run(tmp_path / str(number), config))[0]
        for number, config in enumerate((whole, configured("fedavg", federation__num_rounds=2)))
    ]

    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("fedprox", {"method__proximal_strength": 0.0}),
        ("ditto", {"method__personal_strength": 0.0, "method__client_state": "none"}),
    ],
)
def test_without_its_pull_a_method_is_fedavg(name, off, tmp_path):
    assert configured(name, **off) == configured("fedavg")
    assert configured(name) != configured("fedavg")


def test_ditto_trains_fedavgs_model_and_new_clients_adapt_it_less(tmp_path):
    """Clients that took part start from models of their own instead (tests/methods/test_baselines.py)."""
    config = configured("ditto", federation__num_rounds=2, method__personal_strength=10.0)

    ditto = run(tmp_path / "ditto", config)
    fedavg = run(tmp_path / "fedavg", configured("fedavg", federation__num_rounds=2))

    models = [load_model(folder)[0] for folder in (ditto, fedavg)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    curves = [summary(folder)["new"]["loss"] for folder in (ditto, fedavg)]
    assert curves[0][:2] == pytest.approx(curves[1][:2], rel=1e-6)  # the pull is 0 where fine-tuning starts
    assert curves[0][5] > curves[1][5]
