"""Whatever is wrong with what was typed, it is said in one readable paragraph that names it and what to do."""

import os
import re
import sys

import numpy as np
import pytest

from nufed.common.errors import ConfigError, DataError, ModelError, RunError
from nufed.deploy.commands.cli import main

CONFIG, DATA, MODEL, RUN = (error.exit_code for error in (ConfigError, DataError, ModelError, RunError))

USER_CODE = """
import torch
from torch import nn

def clients(config, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"c{i}": (torch.randn(20, 3, generator=generator), torch.randint(0, 2, (20,), generator=generator))
        for i in range(5)
    }

def raising(config, seed):
    raise RuntimeError("the disk is gone")

def nonsense(config, seed):
    return 42

def empty_client(config, seed):
    return {**clients(config, seed), "c3": (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))}

def narrow_client(config, seed):
    return {**clients(config, seed), "c3": (torch.zeros(20, 2), torch.zeros(20, dtype=torch.long))}

def nan_client(config, seed):
    return {**clients(config, seed), "c3": (torch.full((20, 3), torch.nan), torch.zeros(20, dtype=torch.long))}

def running_statistics(config, task):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))

def seven_outputs(config, task):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def without_parameters(config, task):
    return nn.Flatten()

def not_a_module(config, task):
    return "mlp"

def raising_model(config, task):
    raise ValueError("width is 0")

number = 3
"""

FIVE = ["--clients", "3", "--new-clients", "2"]


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """Make files of every kind of wrongness in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "usercode.py").write_text(USER_CODE)
    (tmp_path / "unfinished.py").write_text("def clients(:\n")
    (tmp_path / "lacking.py").write_text("import a_module_that_nobody_has\n")
    (tmp_path / "typo.toml").write_text("[method]\ninner-lrr = 0.1\n")
    (tmp_path / "range.json").write_text('{"method": {"inner-lr": -1}}')
    (tmp_path / "broken.toml").write_text("[method\n")
    (tmp_path / "broken.json").write_text("{nope")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "deep.toml").write_text("seed = " + "[" * 100_000)
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    (tmp_path / "marked.json").write_text('\ufeff{"method": {"inner-lr": -1}}')
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "file").write_text("")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 4)), rng.integers(0, 3, 100)
    holed = x.copy()
    holed[3, 2] = np.nan
    np.savez("without_y.npz", x=x)
    np.savez("nan.npz", x=holed, y=y)
    np.savez("short.npz", x=x, y=y[:50])
    np.savez("few.npz", x=x[:6], y=y[:6])
    np.savez("objects.npz", x=np.array([{}] * 5, dtype=object), y=y[:5])
    np.savez("fine.npz", x=x, y=y)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.json").write_text("{}")
    (torn / "checkpoint.safetensors").write_bytes(b"\x10\x00\x00")
    yield tmp_path
    for name in ("usercode", "unfinished", "lacking"):
        sys.modules.pop(name, None)


def run(*options):
    given = {option for option in options if option.startswith("--")}
    usual = {"--out": "runs", "--rounds": "1"}
    usual = {} if "--resume" in given else {flag: value for flag, value in usual.items() if flag not in given}
    return main(["simulate", "--quiet", *(word for pair in usual.items() for word in pair), *options])


UNKNOWN_NAMES = [
    (["--dataset", "digitz"], CONFIG, "data.source='digitz' is unknown. Did you mean 'digits'?"),
    (["--dataset", "digits:3"], CONFIG, "takes no argument; write digits"),
    (["--dataset", "npz:"], CONFIG, "write npz:PATH"),
    (["--model", "mpl"], CONFIG, "model.name='mpl' is unknown. Did you mean 'mlp'?"),
    (["--estimator", "exat"], CONFIG, "estimator 'exat' (method.estimator). Did you mean 'exact'?"),
    (["--engine", "locl"], CONFIG, "engine 'locl' (--engine). Did you mean 'local'?"),
    (["--partition", "dirichle"], CONFIG, "--partition (data.partition)='dirichle' is refused"),
    (["--partition", "dirichle"], CONFIG, "Did you mean 'dirichlet'?"),
    (["--weighting", "uniforn"], CONFIG, "Did you mean 'uniform'?"),
    (["--set", "model.activation=rellu"], CONFIG, "Did you mean 'relu'?"),
    (["--set", "method.inner-lrr=1"], CONFIG, "Unknown option 'method.inner-lrr'. Did you mean 'method.inner-lr'?"),
    (["--set", "inner-lr=1"], CONFIG, "Did you mean 'method.inner-lr'?"),
    (["--config", "typo.toml"], CONFIG, "In typo.toml: Unknown option 'method.inner-lrr'. Did you mean"),
    (["--method", ""], CONFIG, "Unknown method '' (--method; `nufed methods` lists them)"),
    (["--device", "gpu"], CONFIG, "--device='gpu' is not on this machine. Choose one of: cpu"),
    (["--roundz", "3"], CONFIG, "No such option"),
    (["digits"], CONFIG, "unexpected extra argument"),
]

OUT_OF_RANGE = [
    (["--rounds", "-1"], CONFIG, "--rounds (federation.num-rounds)='-1' is refused: input should be greater than"),
    (["--rounds", "many"], CONFIG, "--rounds (federation.num-rounds)='many' is refused: input should be a valid int"),
    (["--rounds", "1.5"], CONFIG, "should be a valid integer"),
    (["--fraction", "0"], CONFIG, "--fraction (federation.participation-fraction)='0' is refused"),
    (["--fraction", "1.5"], CONFIG, "less than or equal to 1"),
    (["--inner-lr", "nan"], CONFIG, "should be a finite number"),
    (["--local-lr", "0"], CONFIG, "--local-lr (method.local-lr)='0' is refused: input should be greater than 0"),
    (["--clients", "0"], CONFIG, "--clients (data.num-clients)='0' is refused"),
    (["--seed", "-3"], CONFIG, "--seed='-3' is refused"),
    (["--name", "a/b"], CONFIG, "--name='a/b' is refused. It is: label of the run folder: up to 64 letters"),
    (["--threads", "0"], CONFIG, "'--threads': 0 is not in the range"),
    (["--config", "range.json"], CONFIG, "In range.json: method.inner-lr=-1 is refused"),
    (["--set", "data=5"], CONFIG, "data is a table. Set one of its options: data.source"),
    (["--set", "model.hidden-sizes=wide"], CONFIG, "widths of the hidden layers, comma-separated"),
]

CONTRADICTIONS = [
    (["--inner-lr", "0.1", "--set", "method.inner-lr=0.2"], CONFIG, "--inner-lr 0.1 contradicts --set method.inner-lr"),
    (["--set", "seed=1", "--set", "seed=2"], CONFIG, "--set seed=1 contradicts --set seed=2"),
    (["--set", "evaluation.primary-step=99"], CONFIG, "raise num-adapt-steps or lower primary-step"),
    (
        ["--set", "method.hessian-batches=inner", "--set", "method.hessian-batch-size=3"],
        CONFIG,
        "leave hessian-batch-size at -1",
    ),
    (["--json"], CONFIG, "--quiet contradicts --json"),
    (["--set", "inner"], CONFIG, "--set 'inner' is no assignment; expected KEY=VALUE"),
    (["--resume", "torn", "--out", "elsewhere"], CONFIG, "--out elsewhere contradicts --resume torn"),
    (["--resume", "torn", "--inner-lr", "0.9"], CONFIG, "method.inner-lr=0.9 contradicts the run to resume"),
]

CONFIG_FILES = [
    (["--config", "nowhere.json"], CONFIG, "configuration file at nowhere.json, but it cannot be read (No such file"),
    (["--config", "folder"], CONFIG, "Is a directory"),
    (["--config", "broken.json"], CONFIG, "Expected JSON or TOML in broken.json"),
    (["--config", "broken.toml"], CONFIG, "Expected JSON or TOML in broken.toml"),
    (["--config", "list.json"], CONFIG, "Expected a table of options in list.json, but found list"),
    (["--config", "binary.toml"], CONFIG, "it is not UTF-8 text"),
    (["--config", "deep.json"], CONFIG, "in deep.json, but its brackets are nested too deeply"),
    (["--config", "deep.toml"], CONFIG, "in deep.toml, but its brackets are nested too deeply"),
    (["--config", "endless.json"], CONFIG, "in endless.json, but it has more than 16 MiB"),
    (["--config", "marked.json"], CONFIG, "In marked.json: method.inner-lr=-1 is refused"),
]

DATA_FILES = [
    (["--dataset", "npz:missing.npz"], DATA, "missing.npz, but there is no such file"),
    (["--dataset", "npz:folder"], DATA, "there is no such file"),
    (["--dataset", "npz:text.npz"], DATA, "text.npz is none; write it with numpy.savez_compressed"),
    (["--dataset", "npz:without_y.npz"], DATA, "expected the arrays x and y, or x_train and y_train"),
    (["--dataset", "npz:nan.npz"], DATA, "nan.npz, but of 100 examples some have NaN or infinite values: feature 2"),
    (["--dataset", "npz:short.npz"], DATA, "but got 50 and 100"),
    (["--dataset", "npz:objects.npz"], DATA, "write arrays of numbers or strings"),
    (["--dataset", "npz:few.npz"], DATA, "npz:few.npz has 6; lower data.num-clients or data.num-new-clients"),
    (["--dataset", "npz:fine.npz", "--partition", "by-user"], DATA, "use data.partition=iid, dirichlet or classes"),
    (
        ["--clients", "20", "--new-clients", "2000"],
        DATA,
        "2000 new clients, but digits has 1797; lower",
    ),
    (["--partition", "classes", "--set", "data.classes-per-client=20"], DATA, "data.classes-per-client of at most 10"),
    (["--dataset", "mnist"], DATA, "add --data-root DIR --download"),
    (["--dataset", "mnist", "--data-root", "folder"], DATA, "add --data-root folder --download"),
]

USERS_OWN = [
    (["--dataset", "python:usercode"], CONFIG, "data.source expects module:function, but got 'usercode'"),
    (["--dataset", "python:usercode:missing"], CONFIG, "data.source names 'missing', which usercode does not define"),
    (["--dataset", "python:usercode:number"], CONFIG, "data.source names 'number', which usercode does not define"),
    (["--dataset", "python:nowhere_at_all:f"], CONFIG, "'nowhere_at_all', which is neither installed nor a file under"),
    (["--dataset", "python:unfinished:f"], CONFIG, "raised SyntaxError: invalid syntax (unfinished.py, line 1)"),
    (["--dataset", "python:lacking:f"], CONFIG, "No module named 'a_module_that_nobody_has' (lacking.py, line 1)"),
    (["--dataset", "python:usercode:raising"], DATA, "raised RuntimeError: the disk is gone (usercode.py, line 13)"),
    (["--dataset", "python:usercode:nonsense"], DATA, "to return a Federation, or a dict of clients"),
    (["--dataset", "python:usercode:clients"], DATA, "has 5; lower these numbers"),
    (["--dataset", "python:usercode:empty_client", *FIVE], DATA, "client 'c3' to have at least 2 examples"),
    (["--dataset", "python:usercode:narrow_client", *FIVE], DATA, "client 'c3' to have the form of client 'c0'"),
    (["--dataset", "python:usercode:nan_client", *FIVE], DATA, "inputs of client 'c3'"),
    (["--model", "usercode:missing"], CONFIG, "model.name names 'missing', which usercode does not define"),
    (["--model", "usercode:raising_model"], MODEL, "raised ValueError: width is 0 (usercode.py, line "),
    (["--model", "usercode:not_a_module"], MODEL, "to return a torch.nn.Module, but it returned str"),
    (["--model", "usercode:running_statistics"], MODEL, "'2' is a BatchNorm1d that keeps them; use torch.nn.GroupNorm"),
    (["--model", "usercode:seven_outputs"], MODEL, "expected outputs of shape [B, 10] from Sequential, but got [B, 7]"),
    (["--model", "usercode:without_parameters"], MODEL, "expected a model with parameters"),
    (["--model", "cnn", "--dataset", "sinusoid"], MODEL, "use model.name=mlp"),
]

FOLDERS = [
    (["--out", "file"], RUN, "Expected to make the run's folder in file"),
    (["--out", "file/below"], RUN, "Give --out a folder that can be written to"),
    (["--resume", "nowhere"], RUN, "Expected a run folder at nowhere, but it does not exist"),
    (["--resume", "file"], RUN, "Expected a run folder at file, but it is a file"),
    (["--resume", "folder"], RUN, "folder without config.json. Name a folder that a run left"),
    (["--resume", "torn"], RUN, "checkpoint.safetensors, but it cannot be read"),
]

TABLE = [*UNKNOWN_NAMES, *OUT_OF_RANGE, *CONTRADICTIONS, *CONFIG_FILES, *DATA_FILES, *USERS_OWN, *FOLDERS]


@pytest.mark.parametrize(("options", "exit_code", "said"), TABLE, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_said_in_one_paragraph(workshop, capsys, options, exit_code, said):
    code = run(*options)

    printed = capsys.readouterr()
    assert code == exit_code
    assert said in printed.err
    assert printed.err.startswith("nufed: ")
    assert len(printed.err.splitlines()) == 1
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("options", [["--set", "method.hessian-batch-size=3"], ["--dataset", "npz:fine.npz", *FIVE]])
def test_the_table_can_tell_wrong_from_right(workshop, capsys, options):
    code = run(*options)

    assert code == 0
    assert capsys.readouterr() == ("", "")


def test_nothing_is_left_behind_by_a_run_that_could_not_start(workshop):
    for options, _, _ in (UNKNOWN_NAMES[0], UNKNOWN_NAMES[3], OUT_OF_RANGE[0], DATA_FILES[0], USERS_OWN[6], FOLDERS[0]):
        run(*options)

    assert not (workshop / "runs").exists()


def test_a_run_whose_rounds_are_done_is_not_resumed_without_more(workshop, capsys):
    run(*FIVE)
    [folder] = (workshop / "runs").iterdir()

    complete = run("--resume", str(folder)), capsys.readouterr().err
    fewer = run("--resume", str(folder), "--rounds", "0"), capsys.readouterr().err

    assert complete[0] == RUN
    assert re.search("all 1 are done. Ask for more: --rounds", complete[1])
    assert fewer[0] == CONFIG
    assert re.search("--rounds=0 is fewer than the 1 rounds", fewer[1])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("NUFED_NUM_THREADS", "many", "NUFED_NUM_THREADS='many' is refused"), ("NUFED_DOWNLOAD", "2", "NUFED_DOWNLOAD")],
)
def test_a_wrong_variable_in_the_environment_is_named(workshop, monkeypatch, capsys, name, value, said):
    monkeypatch.setitem(os.environ, name, value)

    code = run()

    assert code == CONFIG
    assert said in capsys.readouterr().err
