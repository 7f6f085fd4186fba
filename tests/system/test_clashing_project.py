"""A project of the user's with the names of NuFed's folders, beside an installed NuFed: neither is in the other's way.

The installation is what a wheel holds, in a folder of its own; with it comes a package of somebody else's that claims
two common names.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]

PROJECT = {
    "mydata.py": """
from common.mydata import clients

def data(config, seed):
    import utils  # late, and the user's own
    return utils.checked(clients())
""",
    "common/__init__.py": "WHOSE = 'the user'",
    "common/mydata.py": """
import numpy as np

def clients():
    rng = np.random.default_rng(0)
    return {f"site-{n}": (x := rng.normal(size=(24, 3)), (x[:, n % 3] > 0).astype(int)) for n in range(4)}

def data(config, seed):
    return clients()
""",
    "server.py": """
from torch import nn

def model(config, task):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, task.num_outputs))
""",
    "client.py": "raise ImportError('nobody asked for this client')",
    "deploy.py": "raise ImportError('nobody asked for this deployment')",
    "utils.py": "checked = dict",
    "strategy/__init__.py": """
from nufed import MetaFedAvg

class Announced(MetaFedAvg):
    '''The user's own, of NuFed's.'''
""",
    "strategy_app.py": """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from strategy import Announced

app, client_app = ServerApp(), ClientApp()

@app.main()
def main(grid, context):
    start = ArrayRecord({"w": torch.zeros(2)})
    result = Announced(participation_fraction=1.0, evaluation_interval=0).start(grid, start, num_rounds=2)
    print("FLOWER", result.arrays.to_torch_state_dict()["w"].tolist())

@client_app.train()
def train(message, context):
    w = message.content["arrays"].to_torch_state_dict()["w"] + 1
    content = {"arrays": ArrayRecord({"w": w}), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
""",
    "train.py": """
import common.mydata, nufed, server, utils

if __name__ == "__main__":
    few = {"num_new_clients": 1, "num_clients": 3, "num_rounds": 1, "progress": False}
    runs = [
        nufed.simulate(common.mydata.clients(), server.model, engine=engine, **few) for engine in ("local", "processes")
    ]
    same = [{name: tensor.tolist() for name, tensor in run.params.items()} for run in runs]
    print("SAME", same[0] == same[1], common.WHOSE)
""",
}

TAKEN = ("random", "ray")
"""A module of Python's own, and one that NuFed imports late."""

COMMANDS = """
import sys
from nufed.deploy.commands.cli import main

if __name__ == "__main__":
    for engine, data in (
        ("local", "mydata"), ("cohort", "common.mydata"), ("processes", "mydata"), ("ray", "common.mydata")
    ):
        code = main(
            f"simulate --dataset python:{data}:data --model server:model --clients 3 --new-clients 1 --rounds 1"
            f" --engine {engine} --quiet --out runs/{engine}".split()
        )
        print("ENGINE", engine, code)
    print("REFUSED", main(["simulate", "--dataset", "python:random:data", "--quiet"]))
    print("REFUSED", main(["simulate", "--dataset", "digits", "--model", "ray:model", "--quiet"]))
"""

FLOWER = """
from flwr.clientapp.client_app import LoadClientAppError
from flwr.serverapp.server_app import LoadServerAppError
from flwr.supercore.object_ref import load_app
from nufed.deploy.simulation.in_process import simulate_in_process

server_app = load_app("strategy_app:app", LoadServerAppError, ".")
client_app = load_app("strategy_app:client_app", LoadClientAppError, ".")
simulate_in_process(server_app, client_app, num_nodes=2, run_config={})
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What a wheel would put into site-packages, and the program beside it."""
    folder = tmp_path_factory.mktemp("installed")
    build = (
        "from setuptools import setup; "
        f"setup(script_args=['-q', 'egg_info', '-e', {str(folder)!r}, 'build_py', '-d', {str(folder / 'site')!r}])"
    )
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    for name in ("utils", "mydata_of_others"):
        (folder / "site" / f"{name}.py").write_text("WHOSE = 'somebody else'", encoding="utf-8")
    (folder / "bin").mkdir()
    (folder / "bin" / "commands.py").write_text(COMMANDS, encoding="utf-8")
    (folder / "bin" / "flower.py").write_text(FLOWER, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def run(site, project):
    def in_project(*arguments: str | Path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site / "site"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            check=False,
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return in_project


def test_an_installation_has_one_name(site):
    installed = {path.name for path in (site / "site").iterdir()} - {"utils.py", "mydata_of_others.py"}

    assert installed == {"nufed"}
    assert (site / "site" / "nufed" / "py.typed").is_file()


def test_every_engine_takes_the_projects_own_data_and_model(run, site, project):
    """From the command line, whose own folder comes first on the path; two files have names that are taken."""
    for name in TAKEN:
        (project / f"{name}.py").write_text("raise ImportError('nobody asked for this one')", encoding="utf-8")

    shown = run(site / "bin" / "commands.py")

    for name in TAKEN:
        (project / f"{name}.py").unlink()

    assert [line for line in shown.splitlines() if line.startswith("ENGINE")] == [
        *("ENGINE local 0", "ENGINE cohort 0", "ENGINE processes 0", "ENGINE ray 0")
    ]
    folders = {engine: next((project / "runs" / engine).iterdir()) for engine in ("local", "processes", "ray")}
    tables = {(folder / "clients.csv").read_bytes() for folder in folders.values()}
    assert len(tables) == 1
    assert shown.count("REFUSED 2") == 2
    for name in TAKEN:
        assert f"names the module '{name}', which the working folder has ({name}.py)" in shown


def test_a_script_in_the_project_has_both(run):
    """Python puts the script's folder first, so that `common` and `server` are the user's in every process."""
    assert "SAME True the user" in run("train.py")


def test_a_flower_app_with_a_strategy_package_of_its_own_uses_ours(run, site):
    assert "FLOWER [2.0, 2.0]" in run(site / "bin" / "flower.py")
