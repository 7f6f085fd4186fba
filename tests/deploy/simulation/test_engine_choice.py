"""Every engine can be named, says so in the run folder, and `auto` is the faster of two."""

import inspect
import json
import re

import pytest

from nufed.common.config import RunConfig
from nufed.common.methods import METHODS
from nufed.deploy.commands.cli import simulate_command
from nufed.deploy.simulation.engines import ENGINES, choose_engine, simulate
from nufed.server.run import ServerOptions

CONFIG = RunConfig().updated(
    {"data.num-clients": 4, "data.num-new-clients": 0, "federation.num-rounds": 1, "method.num-local-steps": 1}
)


@pytest.mark.parametrize(
    ("changes", "engine"),
    [
        ({}, "cohort"),
        ({"model.name": "linear"}, "cohort"),
        ({"model.dropout": 0.2}, "local"),
        ({"model.name": "cnn"}, "local"),
        ({"federation.participation-fraction": 0.25}, "local"),
        (METHODS["imaml"].options(), "local"),
        (METHODS["meta-sgd"].options(), "cohort"),
        (METHODS["fedavg"].options(), "cohort"),
    ],
    ids=str,
)
def test_auto_batches_several_clients_of_a_dense_model(changes, engine):
    """Dropout, convolutions, a single client a round, or a method of another kind: one after another."""
    assert choose_engine(CONFIG.updated(changes)) == engine


@pytest.mark.parametrize(("named", "recorded"), [("auto", "cohort"), ("cohort", "cohort"), ("local", "local")])
def test_the_engine_is_on_record(named, recorded, tmp_path):
    """environment.json names what `auto` stood for."""
    simulate(CONFIG, ServerOptions(out=tmp_path), engine=named)

    [folder] = tmp_path.iterdir()
    assert json.loads((folder / "environment.json").read_text())["engine"] == recorded


def test_every_engine_is_named_by_the_command_line():
    """The help of --engine says what each is."""
    declared = inspect.signature(simulate_command).parameters["engine"].annotation.__metadata__[0].help

    assert [name for name in ENGINES if not re.search(rf"\b{name}\b", declared)] == []
