"""`nufed.simulate`: data and models in memory, every engine, the same bits as the command line."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import nufed
from nufed.common.data import load_federation
from nufed.common.settings import Settings
from nufed.deploy.commands.cli import main
from tests.library.federations import Squashed, build, same_model, sites

FEW = {"num_rounds": 2, "num_inner_steps": 2, "num_local_steps": 2, "num_adapt_steps": 3, "primary_step": 2}
QUIET = {"progress": False}

USERS_FILE = """
from tests.library.federations import build, sites

def data(config, seed):
    return sites()

def model(config, task):
    return build(config, task)
"""


@pytest.fixture(scope="module")
def run():
    return nufed.simulate(sites(), build, new_clients=["site-4", "site-5"], **FEW, **QUIET)


@pytest.mark.system
def test_worker_processes_have_data_model_task_and_metrics_of_this_process():
    """Closures, which no worker could import; new clients by name."""
    width, step = 4, 1

    def closure(config, task):
        return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))

    def losses(outputs, targets):
        return nn.functional.cross_entropy(outputs / step, targets, reduction="none")

    def first_class(outputs, targets):
        return float((outputs.argmax(1) < step).double().mean())

    options = {"task": losses, "metrics": [first_class], "new_clients": ["site-4", "site-5"], **FEW, **QUIET}
    run, other = (nufed.simulate(sites(), closure, engine=engine, **options) for engine in ("local", "processes"))

    assert same_model(run, other)
    assert set(run.curves()["metric"]) == {"loss", "first-class"}
    assert other.curves().equals(run.curves())
    assert other.config == run.config


def test_the_command_line_makes_the_same_model_of_the_same_federation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(USERS_FILE, encoding="utf-8")
    typed = "simulate --dataset python:mine:data --model mine:model --clients 4 --new-clients 2 --rounds 2 --quiet"
    options = "--inner-steps 2 --local-steps 2 --adapt-steps 3 --set evaluation.primary-step=2 --out runs"

    assert main([*typed.split(), *options.split()]) == 0
    here = nufed.simulate(sites(), build, num_clients=4, num_new_clients=2, **FEW, **QUIET)

    (folder,) = (tmp_path / "runs").iterdir()
    assert same_model(here, nufed.load_run(folder))
    assert (here.path / "clients.csv").read_bytes() == (folder / "clients.csv").read_bytes()


def test_all_clients_take_part_but_those_named_new(run):
    groups = run.clients.set_index("client")["group"]

    assert groups.to_dict() == {f"site-{n}": "new" if n > 3 else "participating" for n in range(6)}
    assert (run.config.data.num_clients, run.config.data.num_new_clients) == (4, 2)
    trained = {client for record in run.history.to_dict("records") for client in [record["round"]]}
    assert trained == {1, 2}


def test_a_configuration_that_says_how_many_clients_wins_over_the_dataset_and_keywords_win_over_both():
    config = nufed.RunConfig(data=nufed.DataConfig(num_clients=3, num_new_clients=1), seed=7)

    run = nufed.simulate(sites(), "linear", config=config, num_new_clients=2, num_rounds=0, **QUIET)

    assert run.clients["group"].tolist() == ["participating"] * 3 + ["new"] * 2
    assert run.config.seed == 7


def test_a_preset_lies_between_configuration_and_keywords():
    config = nufed.RunConfig(method=nufed.MethodConfig(num_inner_steps=7, inner_lr=0.2))

    run = nufed.simulate(sites(), "linear", config=config, method="per-fedavg", inner_lr=0.3, num_rounds=0, **QUIET)

    assert (run.config.method.num_inner_steps, run.config.method.inner_lr) == (1, 0.3)


@pytest.mark.parametrize("factory", [lambda: nn.Linear(3, 2), lambda task: nn.Linear(3, task.num_outputs)])
def test_functions_are_called_with_as_much_as_they_need(factory):
    run = nufed.simulate(sites(), factory, num_rounds=0, **QUIET)

    assert run.params["weight"].shape == (2, 3)


def test_a_module_is_the_starting_point_and_stays_as_it_is():
    module = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    start = nufed.simulate(sites(), module, num_rounds=0, **QUIET)
    trained = nufed.simulate(sites(), module, num_rounds=1, **QUIET)

    assert all(torch.equal(start.params[name], tensor) for name, tensor in before.items())
    assert not torch.equal(trained.params["weight"], before["weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_models_that_differ_in_their_forward_pass_alone_are_told_apart():
    """The parameters and the structure are the same: nothing remembered of one may serve the other."""
    runs = [nufed.simulate(sites(), lambda f=f: Squashed(f), num_rounds=1, **QUIET) for f in (torch.tanh, torch.sin)]

    assert runs[0].config.model.name != runs[1].config.model.name
    assert not same_model(*runs)


def test_a_model_that_cannot_be_pickled_says_the_way_out_and_runs_in_this_process():
    lock = threading.Lock()

    def locked():
        with lock:
            return nn.Linear(3, 2)

    with pytest.raises(nufed.RunError, match=r"cannot be pickled .* model='module:function', or use engine='local'"):
        nufed.simulate(sites(), locked, engine="processes", num_rounds=0, **QUIET)
    assert nufed.simulate(sites(), locked, num_rounds=0, **QUIET).summary["status"] == "complete"


def test_a_run_changes_nothing_in_the_process():
    before = dict(os.environ)
    torch.set_num_threads(2)
    try:
        nufed.simulate(sites(), "linear", num_rounds=1, num_threads=1, **QUIET)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert {name: value for name, value in os.environ.items() if name.startswith("NUFED")} == {
        name: value for name, value in before.items() if name.startswith("NUFED")
    }


def test_runs_in_threads_take_turns(run):
    """Each has data and options of its own, which the others' ends do not take away."""
    options = {"new_clients": ["site-4", "site-5"], **FEW, **QUIET}

    with ThreadPoolExecutor(3) as pool:
        others = list(pool.map(lambda _: nufed.simulate(sites(), build, **options), range(3)))

    assert same_model(run, *others)


def test_a_federation_with_its_own_splits_keeps_them():
    config = nufed.DataConfig(source="sinusoid", num_clients=3, num_new_clients=2)
    federation = load_federation(config, seed=5, dtype=torch.float32, settings=Settings())

    given = nufed.simulate(federation, target_scale="none", seed=5, **FEW, **QUIET)  # as this source's are by default
    named = nufed.simulate("sinusoid", num_clients=3, num_new_clients=2, seed=5, **FEW, **QUIET)

    assert same_model(given, named)
    assert given.curves().equals(named.curves())


def test_progress_is_shown_on_a_terminal_and_can_be_turned_off(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")

    nufed.simulate(sites(), "linear", num_rounds=1)
    shown = capsys.readouterr()
    nufed.simulate(sites(), "linear", num_rounds=1, progress=False)

    assert "round" in shown.err
    assert shown.out == ""
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"num_inner_step": 3}, nufed.ConfigError, "Unknown option 'num_inner_step'. Did you mean 'num_inner_steps'"),
        ({"rounds": 3}, nufed.ConfigError, "Did you mean 'num_rounds'"),
        ({"fraction": 0.5}, nufed.ConfigError, "'outer_holdout_fraction' or 'participation_fraction'"),
        ({"source": "digits"}, nufed.ConfigError, "source is given by dataset=. Use that one"),
        ({"num_rounds": -1}, nufed.ConfigError, "federation.num-rounds=-1 is refused"),
        ({"engine": "locl"}, nufed.ConfigError, "Unknown engine 'locl'.* Did you mean 'local'"),
        ({"device": "cuda:99"}, nufed.ConfigError, "device='cuda:99' is not on this machine"),
        ({"method": "fedavgg"}, nufed.ConfigError, "Did you mean 'fedavg'"),
        ({"dataset": [1, 2]}, nufed.DataError, "expected a dict from client name .* but got list"),
        ({"dataset": {}}, nufed.DataError, "expected clients to train on, but the dataset has 0"),
        ({"dataset": {"a": (1, 2, 3, 4)}}, nufed.DataError, "client 'a' to be a pair .* but got tuple"),
        ({"dataset": {"a": ([[1.0]], [0])}}, nufed.DataError, "client 'a' to have at least 2 examples"),
        ({"dataset": "digit"}, nufed.ConfigError, "Did you mean 'digits'"),
        ({"dataset": "digits", "new_clients": ["a"]}, nufed.ConfigError, "give num_new_clients instead"),
        ({"dataset": "given:0123"}, nufed.DataError, r"nufed.load_run\(FOLDER, dataset=...\)"),
        ({"new_clients": ["nobody"]}, nufed.ConfigError, "new_clients names 'nobody'"),
        ({"new_clients": [f"site-{n}" for n in range(6)]}, nufed.DataError, "has 6, of which 6 are new"),
        ({"client_column": "x"}, nufed.ConfigError, "a dict by client already"),
        ({"target_column": "x"}, nufed.ConfigError, "are for tables"),
        ({"num_clients": 9}, nufed.DataError, "expected 9 participating"),
        ({"model": 3}, nufed.ConfigError, "model expects a torch.nn.Module, .* but got int"),
        ({"model": lambda a, b, c: a}, nufed.ConfigError, "it needs 3: a, b, c"),
        ({"model": lambda: 3}, nufed.ModelError, "returned int; return the module"),
        ({"model": lambda: 1 / 0}, nufed.ModelError, r"ZeroDivisionError: division by zero \(test_simulation.py"),
        ({"model": nn.Linear(4, 2)}, nufed.ModelError, r"inputs of shape \[B, 3\]"),
        ({"model": lambda *, task: task}, nufed.ConfigError, "'task' is by name only"),
        ({"dataset": {"a": torch.zeros(4, 3)}}, nufed.DataError, "client 'a' to be a pair .* got one array .Tensor."),
        ({"new_clients": "site-1"}, nufed.ConfigError, "new_clients expects a list, but got the text 'site-1'"),
        ({"new_clients": 2}, nufed.ConfigError, "new_clients expects a list, but got int"),
        ({"config": {"num_rounds": 3}}, nufed.ConfigError, r"config expects a nufed.RunConfig, but got dict"),
        ({"config": "run.toml"}, nufed.ConfigError, r"nufed.RunConfig.load\(path\)"),
        ({"method": {"num_inner_steps": 3}}, nufed.ConfigError, "method expects a name, but got dict"),
        ({"engine": None}, nufed.ConfigError, "engine expects a name, but got None"),
        ({"engine": "locl"}, nufed.ConfigError, r"^Unknown engine 'locl'\. Did"),
        (
            {"num_threads": 0},
            nufed.ConfigError,
            "^num_threads=0 is refused: input should be greater than or equal to 1",
        ),
        ({"out": 5}, nufed.ConfigError, "out expects the path of a folder, but got int"),
        ({"out": "/proc/none"}, nufed.RunError, "Give out= a folder"),
        ({"model": "mpl"}, nufed.ConfigError, "Did you mean 'mlp'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments, kind, said):
    with pytest.raises(kind, match=said):
        nufed.simulate(**{"dataset": sites(), "model": "linear", **QUIET, **arguments})


def test_sections_of_the_configuration_made_in_python_refuse_as_files_do():
    with pytest.raises(nufed.ConfigError, match=r"num-inner-steps=-1 is refused.*ν"):
        nufed.MethodConfig(num_inner_steps=-1)
    with pytest.raises(nufed.ConfigError, match=r"Unknown option 'num-rounds'. Did you mean 'federation.num-rounds'"):
        nufed.RunConfig(num_rounds=3)
