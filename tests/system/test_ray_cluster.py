"""`--engine ray` on a cluster of three nodes that runs already."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.system.process_tree import descendants
from tests.system.ray_three_nodes import ROOT, three_nodes

pytestmark = pytest.mark.system

OWN = """
import os, time
from pathlib import Path
import numpy as np, torch
import layers

def clients(*_):
    table = np.load("examples.npy")  # lies in the folder of the run alone
    return {f"site-{i}": (part[:, :5], (part[:, 5] > 0).astype(int)) for i, part in enumerate(table)}

class Gated(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = layers.linear()
        self.gate = os.environ.get("NUFED_TEST_PRIVACY_KEY")  # unused otherwise, and travels

    def forward(self, inputs):
        time.sleep(0.05 if self.gate else 0)
        while self.gate and not Path(self.gate).exists():
            time.sleep(0.05)
        return self.layer(inputs)

def model(config, task):
    return Gated()
"""
OPTIONS = [
    *("--dataset", "python:own_code:clients", "--model", "own_code:model", "--clients", "5", "--new-clients", "1"),
    *("--rounds", "3", "--set", "evaluation.interval=3", "--local-steps", "2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("project")
    (path / "own_code.py").write_text(OWN)
    (path / "layers.py").write_text("import torch\n\ndef linear():\n    return torch.nn.Linear(5, 2)\n")
    import numpy as np

    np.save(path / "examples.npy", torch.randn(6, 40, 6, generator=torch.Generator().manual_seed(0)).numpy())
    return path


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with three_nodes(tmp_path_factory.mktemp("elsewhere")) as cluster:
        yield cluster


def command(*options):
    return [
        sys.executable,
        "-c",
        "from nufed.deploy.commands.cli import main; raise SystemExit(main())",
        "simulate",
        *options,
    ]


def started(folder, *options, gate="", cluster=""):
    """Start a simulation whose clients take no turn while there is no file `gate`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUFED_TEST_PRIVACY_KEY": str(gate)}
    environment |= {"RAY_ADDRESS": cluster} if cluster else {}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(*options), cwd=folder, env=environment, **pipes)


def finished(process):
    said, _ = process.communicate(timeout=240)
    return said


def said_until(process, words):
    """Return the lines of a process up to one that has these words."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError("".join(lines))


def results(out):
    (run,) = Path(out).iterdir()
    rows = list(csv.reader((run / "clients.csv").read_text(encoding="utf-8").splitlines()))
    return load_file(run / "model.safetensors"), rows


def assert_same(out, other):
    (model, rows), (other_model, other_rows) = results(out), results(other)
    assert rows == other_rows
    assert all(torch.equal(model[name], other_model[name]) for name in model.keys() | other_model.keys())


@pytest.fixture(scope="module")
def local(folder):
    process = started(folder, *OPTIONS, "--out", "local")
    assert finished(process)
    assert process.returncode == 0
    return folder / "local"


def actors(nodes):
    """Return the processes of actors on the cluster."""
    found = []
    for pid in descendants(nodes.process.pid):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"ray::ClientActor" in name:
            found.append(pid)
    return found


def test_a_node_lost_and_one_that_joins_change_no_bit(folder, nodes, local):
    """Own modules and data travel, the lost node's turns are taken elsewhere, the new node gets actors."""
    gate = folder / "gate"
    gate.touch()
    where = ["--engine", "ray", "--ray-address", nodes.address, "--out", "ray"]
    process = started(folder, *OPTIONS, *where, gate=gate)
    lines = said_until(process, "round 1/3")
    gate.unlink()  # the clients of round 2 wait in mid-turn
    nodes.tell("remove")
    lines += said_until(process, "is lost")
    nodes.tell("add")
    lines += said_until(process, "has joined")
    gate.touch()
    said = "".join(lines) + finished(process)

    assert process.returncode == 0, said
    assert "Ray: 3 nodes, 3 actors, each with 1 CPU" in said
    assert "is lost, its clients' turns are taken elsewhere" in said
    assert "has joined; 3 nodes, 3 actors" in said
    assert_same(folder / "ray", local)


def test_nothing_stays_when_the_program_is_killed_and_the_run_goes_on(folder, nodes, local):
    """The actors end with the program, and its checkpoint is what any engine goes on from."""
    gate = folder / "gate"
    gate.touch()
    where = ["--engine", "ray", "--ray-address", "auto", "--out", "killed"]
    process = started(folder, *OPTIONS, *where, gate=gate, cluster=nodes.address)
    said_until(process, "round 1/3")
    gate.unlink()
    before = actors(nodes)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 60
    while actors(nodes) and time.monotonic() < deadline:
        time.sleep(0.2)  # polls the system's processes
    (run,) = (folder / "killed").iterdir()
    resumed = started(folder, "--resume", f"killed/{run.name}")

    assert finished(resumed)
    assert resumed.returncode == 0
    assert before
    assert actors(nodes) == []
    assert_same(folder / "killed", local)


def test_what_no_node_has_is_refused_with_what_there_is(folder, nodes):
    """Nothing is waited for that cannot come; resources of the user's own place actors where there are some."""
    few = ["--dataset", "quadratic", "--model", "linear", "--clients", "3", "--new-clients", "0", "--rounds", "1"]
    where = ["--engine", "ray", "--ray-address", nodes.address, "--out", "own"]
    greedy = started(folder, *few, *where, "--gpus-per-client", "0.5")

    said = finished(greedy)

    assert greedy.returncode == 6
    assert "Expected a node of the Ray cluster with at least 1 CPU, 0.5 GPU" in " ".join(said.split())
    assert "1 CPU, 0 GPU" in said
