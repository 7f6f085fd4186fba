"""What simulated clients keep is part of the checkpoint: a run that goes on is the run that was not stopped."""

import json
import logging

import pytest
import torch

from nufed.client import client_state
from nufed.common.client_states import StateFile
from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.common.methods import METHODS
from nufed.deploy.simulation.engines import simulate
from nufed.server import run as server_run
from nufed.server.client_states import FOLDER
from nufed.server.run import ServerOptions
from nufed.server.run_folder import load_model
from tests.common.meta.problems import relative_difference

SMALL = {
    "data.num-clients": 5,
    "data.num-new-clients": 2,
    "model.hidden-sizes": "8",
    "method.num-local-steps": 2,
    "federation.num-rounds": 5,
    "evaluation.interval": 2,
    "evaluation.num-adapt-steps": 5,
}


def configured(name):
    return RunConfig().updated({**METHODS[name].options(), **SMALL})


def run(out, config, resume=None, engine="local", **options):
    simulate(config, ServerOptions(out=out, resume=resume, **options), engine=engine)
    return resume or next(iter(out.iterdir()))


def left(folder):
    """Return what a run leaves, without how long it took."""
    states = {path.name: path.read_bytes() for path in (folder / FOLDER).iterdir()}
    named = json.loads((folder / "summary.json").read_text())
    return load_model(folder)[0], (folder / "clients.csv").read_bytes(), states, named["participating"]["loss"]


def same(one, other):
    return all(torch.equal(one[0][name], other[0][name]) for name in one[0]) and one[1:] == other[1:]


class Killed(BaseException):
    """What no code of a run catches, as a process that is killed runs none."""


@pytest.mark.parametrize("name", ["fedrep", "ditto"])
def test_a_killed_run_goes_on_to_the_same_bytes(name, tmp_path, monkeypatch):
    """Killed when the states of round 3 are written and its checkpoint is not: the round is computed again."""
    whole, config = run(tmp_path / "whole", configured(name)), configured(name)
    save = server_run.RunFolder.save_checkpoint

    def killed(folder, **kept):
        if kept["round"] == 3:
            raise Killed
        save(folder, **kept)

    monkeypatch.setattr(server_run.RunFolder, "save_checkpoint", killed)
    with pytest.raises(Killed):
        run(tmp_path / "cut", config)
    (folder,) = (tmp_path / "cut").iterdir()
    written = {path.name.split("-")[1] for path in (folder / FOLDER).iterdir()}
    monkeypatch.undo()

    run(tmp_path, config, resume=folder)

    assert "3.safetensors" in written
    assert same(left(folder), left(whole))
    assert 0 < len(left(whole)[2]) <= config.data.num_clients  # one file for each client, and none of earlier rounds


def test_engines_leave_the_same_bytes(tmp_path):
    config = configured("fedrep")

    folders = [run(tmp_path / engine, config, engine=engine) for engine in ("local", "processes")]

    assert same(*map(left, folders))


@pytest.mark.parametrize("name", ["fedrep", "ditto", "pfedme"])
def test_many_clients_at_once_keep_what_each_alone_would(name, tmp_path, caplog):
    """Up to rounding; a round begins with what earlier ones left."""
    caplog.set_level(logging.WARNING, "nufed.cohort")
    config = configured(name).updated({"model.dtype": "float64", "method.proximal-strength": 0.1})

    alone, together = (run(tmp_path / engine, config, engine=engine) for engine in ("local", "cohort"))

    states = [
        {path.name.split("-")[0]: StateFile.read(path).versions for path in (folder / FOLDER).iterdir()}
        for folder in (alone, together)
    ]
    assert states[0].keys() == states[1].keys()
    for client, theirs in states[0].items():
        assert list(theirs) == list(states[1][client])
        assert all(relative_difference(states[1][client][number], theirs[number]) < 1e-9 for number in theirs)
    assert relative_difference(*(load_model(folder)[0] for folder in (together, alone))) < 1e-9
    assert left(together)[3] == pytest.approx(left(alone)[3], rel=1e-9)
    assert caplog.text == ""


def test_a_complete_run_goes_on_with_more_rounds(tmp_path):
    config = configured("fedrep")
    more = config.updated({"federation.num-rounds": 7})
    folder = run(tmp_path / "less", config)

    run(tmp_path, more, resume=folder)

    assert same(left(folder), left(run(tmp_path / "more", more)))


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_states_that_are_not_those_of_the_checkpoint_are_refused(how, tmp_path):
    config = configured("fedrep").updated({"federation.num-rounds": 2})
    folder = run(tmp_path, config)
    path = min((folder / FOLDER).iterdir())
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")

    with pytest.raises(RunError, match=r"client-states/.*Put back the folder"):
        run(tmp_path, config.updated({"federation.num-rounds": 3}), resume=folder)


def test_runs_that_leave_no_states_say_so(tmp_path):
    """Those of experiments, which are begun anew where they are cut short."""
    config = configured("fedrep").updated({"federation.num-rounds": 2})
    folder = run(tmp_path, config, is_disposable=True)

    assert not (folder / FOLDER).exists()
    with pytest.raises(RunError, match="the run has left none"):
        run(tmp_path, config.updated({"federation.num-rounds": 3}), resume=folder)


def test_a_simulated_client_keeps_one_version():
    state = client_state.node_records(4, {"w": torch.ones(2)})

    assert client_state.kept_round(state) == 4
    assert torch.equal(client_state.kept_arrays(state)["w"], torch.ones(2))
