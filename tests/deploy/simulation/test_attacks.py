"""Clients that attack in a simulation: what they send, who they are, and what becomes of the run."""

import json
from statistics import NormalDist

import pytest
import torch

from nufed.client.workplace import FLIP_LABELS, workplace
from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, RunError
from nufed.common.settings import Settings
from nufed.deploy.simulation.attacks import ATTACKS, instead_of, recruit
from nufed.deploy.simulation.engines import prepare, simulate_checked
from nufed.server.adaptation_curves import group_curves
from nufed.server.clients_table import read_clients_csv
from nufed.server.run import ServerOptions

CONFIG = RunConfig().updated(
    {
        "data.num-clients": 10,
        "data.num-new-clients": 2,
        "data.partition": "iid",
        "model.hidden-sizes": "16",
        "method.num-inner-steps": 0,
        "method.local-lr": 0.3,
        "federation.num-rounds": 20,
        "federation.participation-fraction": 1.0,
        "evaluation.interval": 0,
        "evaluation.num-adapt-steps": 5,
    }
)
ROBUST = {"federation.aggregation": "geometric-median", "federation.num-attackers": 2}


def run(out, config, attack=None, engine="cohort", resume=None):
    simulate_checked(config, ServerOptions(out=out, resume=resume), engine=engine, attack=attack)
    (folder,) = out.iterdir()
    return folder


def accuracy(folder):
    group = json.loads((folder / "summary.json").read_text())["participating"]
    return group["accuracy"][5], group["num_clients"]


def test_attackers_send_what_the_papers_say():
    sent = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    moves = {0: [1.0, 0.0], 1: [3.0, 4.0], 2: [5.0, -4.0], 3: [0.5, 0.5]}
    made = {i: {"w": sent["w"] + torch.tensor(move), "n": torch.tensor(4 + i)} for i, move in moves.items()}
    mean, deviation = torch.tensor([3.0, 0.0]), torch.tensor([(8 / 3) ** 0.5, (32 / 3) ** 0.5])
    expected = {
        "sign-flip": torch.tensor([-0.5, -0.5]),
        "scaled": torch.tensor([-5.0, -5.0]),
        "label-flip": torch.tensor([0.5, 0.5]),
        "alie": mean - deviation,
        "inner-product": -0.1 * mean,
    }

    for name, attack in ATTACKS.items():
        found = instead_of(attack, sent, made, frozenset({3, 9}))
        assert found.keys() == {3}
        torch.testing.assert_close(found[3]["w"] - sent["w"], expected[name])
        assert found[3]["n"] == 7


def test_many_attackers_hide_as_far_out_as_a_majority_with_them_reaches():
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(26, 3, generator=generator, dtype=torch.float64)
    own = torch.zeros(3, dtype=torch.float64)

    found = ATTACKS["alie"].update(own, honest, 24)

    deviations = (honest.mean(0) - found) / honest.std(0, correction=0)
    reaches = NormalDist().inv_cdf((50 - 24 - 2) / (50 - 24))  # Baruch et al. 2019: s = floor(n/2 + 1) - m = 2
    torch.testing.assert_close(deviations, torch.full((3,), reaches, dtype=torch.float64))


def test_an_attacker_that_flips_labels_trains_on_them_and_is_judged_on_the_right_ones():
    node = {"partition-id": 3, "num-partitions": 12}
    honest, hostile = (
        workplace(CONFIG.flat(), {**node, **more}, Settings()).data for more in ({}, {FLIP_LABELS: True})
    )

    assert torch.equal(hostile.support.targets, 9 - honest.support.targets)
    assert torch.equal(hostile.test.targets, honest.test.targets)


@pytest.mark.parametrize(
    ("attack", "number", "source", "reason"),
    [
        ("scale", 1, "digits", "Did you mean 'scaled'"),
        ("scaled", 10, "digits", "expected 1 to 9 of 10"),
        ("scaled", 0, "digits", "expected 1 to 9 of 10"),
        ("label-flip", 1, "sinusoid", "contradicts a regression"),
    ],
)
def test_attacks_that_cannot_be_are_refused(attack, number, source, reason):
    config = CONFIG.replace(data__source=source)

    with pytest.raises(ConfigError, match=reason):
        recruit(attack, number, config, prepare(config))


def test_one_scaled_attacker_ruins_the_mean_and_a_robust_rule_holds(tmp_path):
    """Honest clients' accuracy after five steps; the attackers are not among those judged."""
    robust, attack = CONFIG.updated(ROBUST), ("scaled", 2)
    mean, attacked_mean = accuracy(run(tmp_path / "a", CONFIG)), accuracy(run(tmp_path / "b", CONFIG, attack))
    held = accuracy(folder := run(tmp_path / "c", robust, attack))

    assert attacked_mean[0] < mean[0] - 0.2
    assert held[0] > mean[0] - 0.05
    assert (mean[1], held[1]) == (10, 8)
    hostile = json.loads((folder / "environment.json").read_text())["hostile"]
    assert hostile["attack"] == "scaled"
    curves = read_clients_csv((folder / "clients.csv").read_text())
    honest = [client for client in curves if client.client_id not in hostile["clients"]]
    assert len(curves) - len(honest) == 2
    judged = group_curves(honest, "participating", primary_step=5, measure="accuracy", max_weight=10.0)
    assert judged.num_clients == 8


def test_a_run_goes_on_with_the_attack_that_it_began_with(tmp_path):
    short = CONFIG.updated({**ROBUST, "federation.num-rounds": 1})
    longer = short.replace(federation__num_rounds=2)
    folder = run(tmp_path / "run", short, ("alie", 2))

    for attack in (None, ("alie", 1), ("scaled", 2)):
        with pytest.raises(RunError, match="--attack alie --attackers 2"):
            run(tmp_path / "run", longer, attack, resume=folder)
    run(tmp_path / "run", longer, ("alie", 2), resume=folder)
    whole = run(tmp_path / "whole", longer, ("alie", 2), engine="local")

    assert (folder / "checkpoint.safetensors").is_file()
    resumed, fresh = (json.loads((each / "summary.json").read_text())["participating"] for each in (folder, whole))
    assert resumed["accuracy"] == pytest.approx(fresh["accuracy"], abs=0.02)
