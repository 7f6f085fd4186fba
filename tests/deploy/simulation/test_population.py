"""Many simulated clients: a run costs what those that it asks cost, and a sample of them judges its models."""

import csv
import importlib
import json
import sys

import pytest
import torch
from rich.console import Console

from nufed.common.config import RunConfig
from nufed.common.data import list_clients, load_federation
from nufed.common.events import EventStream
from nufed.common.settings import Settings
from nufed.deploy.commands.terminal import TerminalObserver
from nufed.deploy.simulation.engines import simulate, simulate_checked
from nufed.server.observer import ObserverSink
from nufed.server.run import ServerOptions

FEW_STEPS = {"evaluation.num-adapt-steps": 1, "evaluation.primary-step": 1, "method.local-lr": 0.001}


@pytest.mark.parametrize("engine", ["local", "cohort"])
def test_a_sample_of_each_group_judges_every_model_of_a_run_and_the_run_says_so(tmp_path, engine, capsys):
    sizes = {"data.source": "sinusoid", "data.num-clients": 12, "data.num-new-clients": 6}
    options = {"federation.num-rounds": 2, "evaluation.interval": 1, "evaluation.num-clients": 4}
    config = RunConfig().updated({**sizes, **options, **FEW_STEPS})

    with TerminalObserver(Console(width=180)) as observer, EventStream() as events:
        events.attach(ObserverSink(observer), patience=None)
        simulate(config, ServerOptions(out=tmp_path, events=events), engine=engine)
    (folder,) = tmp_path.iterdir()
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    judged = [set(event["clients"]) for event in told if event["event"] == "evaluation"]
    with (folder / "clients.csv").open() as file:
        rows = {row["client_id"]: row["group"] for row in csv.DictReader(file)}
    summary = json.loads((folder / "summary.json").read_text())

    assert [len(each) for each in judged] == [4, 4, 4, 8]
    assert judged[0] == judged[1] == judged[2] == {name for name, group in rows.items() if group == "participating"}
    assert set(rows) == judged[3]
    assert summary["evaluation_sample"] == {"participating": {"asked": 4, "of": 12}, "new": {"asked": 4, "of": 6}}
    assert summary["final_evaluation"]["absent"] == {}
    assert summary["final_evaluation"]["never_seen"] == 0
    assert "Judged by a sample: 4 of 12 participating and 4 of 6 new clients" in capsys.readouterr().out


CROWD = """
import numpy as np

from nufed.common.data.on_demand import Population
from nufed.common.examples import TaskInfo

LOADED = []


def of(name):
    LOADED.append(name)
    rng = np.random.default_rng(int(name[1:]))
    return rng.standard_normal((8, 3)).astype(np.float32), rng.integers(0, 4, 8)


def crowd(config, seed):
    return Population(TaskInfo("classification", (3,), 4), [f"p{i}" for i in range(20_010)], of)


def dictionary(config, seed):
    return {f"p{i}": of(f"p{i}") for i in range(40)}


def few(config, seed):
    return Population(TaskInfo("classification", (3,), 4), [f"p{i}" for i in range(40)], of)
"""


@pytest.fixture
def crowd(tmp_path, monkeypatch):
    (tmp_path / "crowd.py").write_text(CROWD, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("crowd")
    del sys.modules["crowd"]


@pytest.mark.parametrize("engine", ["local", "cohort"])
def test_of_twenty_thousand_clients_the_data_of_those_alone_are_made_that_are_asked(tmp_path, crowd, engine):
    sizes = {"data.source": "python:crowd:crowd", "data.num-clients": 20_000, "data.num-new-clients": 5}
    rounds = {"federation.num-rounds": 3, "federation.participation-fraction": 0.001, "evaluation.num-clients": 7}
    config = RunConfig().updated({**sizes, **rounds, "data.input-scale": "none", **FEW_STEPS})

    simulate_checked(config, ServerOptions(out=tmp_path / "runs"), engine=engine)
    (folder,) = (tmp_path / "runs").iterdir()
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    asked = {name for event in told if event["event"] == "asked" for name in event["clients"]}
    with (folder / "clients.csv").open() as file:
        sizes = {row["client_id"]: int(row["num_support"]) for row in csv.DictReader(file)}

    assert 60 <= len(asked) <= 3 * 20 + 7 + 7 + 5
    assert set(crowd.LOADED) - asked <= {list_first(config)}
    assert len(crowd.LOADED) <= 2 * len(asked) + 4
    assert len(sizes) == 7 + 5
    assert min(sizes.values()) > 0


def test_a_population_and_a_dict_of_the_same_clients_are_one_federation(crowd):
    options = {"data.num-clients": 30, "data.num-new-clients": 8}
    lazy, eager = (
        load_federation(
            RunConfig().updated({**options, "data.source": f"python:crowd:{name}"}).data,
            seed=3,
            dtype=torch.float32,
            settings=Settings(),
        )
        for name in ("few", "dictionary")
    )

    for one, other in zip(lazy.clients, eager.clients, strict=True):
        assert (one.client_id, one.group) == (other.client_id, other.group)
        for split in ("support", "validation", "test"):
            assert torch.equal(getattr(one, split).inputs, getattr(other, split).inputs)
            assert torch.equal(getattr(one, split).targets, getattr(other, split).targets)


def list_first(config):
    return list_clients(config.data, seed=config.seed, settings=Settings())[0][0]
