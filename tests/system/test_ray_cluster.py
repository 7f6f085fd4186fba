"""`--engine ray` on a cluster of two nodes that runs already."""

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

from tests.system import ray_nodes
from tests.system.process_tree import descendants

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]

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
    head, other = {"num_cpus": 1}, {"num_cpus": 1, "resources": {"slot": 1}}
    with ray_nodes.running(tmp_path_factory.mktemp("elsewhere"), head, other) as cluster:
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


def wait_for_rounds(out, count, process):
    """Wait until a run has done so many rounds; what it prints leaves out rounds that are quick."""
    deadline = time.monotonic() + 120
    while sum(len(path.read_text().splitlines()) for path in out.glob("*/metrics.jsonl")) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)  # polls what the process has written


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


def test_resources_of_the_users_own_place_clients_where_there_are_some(folder, nodes, local):
    """Own modules and data travel; the node without the resource gets no actor."""
    where = ["--engine", "ray", "--ray-address", nodes.address, "--ray-resources", '{"slot": 1}', "--out", "placed"]
    process = started(folder, *OPTIONS, *where)

    said = finished(process)

    assert process.returncode == 0, said
    assert "Ray: 1 node, 1 actor, each with 1 CPU, 1 slot" in said
    assert_same(folder / "placed", local)


def test_a_node_lost_one_that_joins_and_a_killed_program_change_no_bit(folder, nodes, local):
    """The lost node's turns are taken elsewhere, the new node gets actors, which end with the program."""
    gate = folder / "gate"
    gate.touch()
    process = started(
        folder,
        *OPTIONS,
        *("--engine", "ray", "--ray-address", "auto", "--out", "killed"),
        gate=gate,
        cluster=nodes.address,
    )
    wait_for_rounds(folder / "killed", 1, process)
    gate.unlink()  # clients wait in mid-turn
    nodes.remove(1)
    lines = said_until(process, "is lost")
    nodes.add(num_cpus=1)
    lines += said_until(process, "has joined")
    gate.touch()
    wait_for_rounds(folder / "killed", 2, process)
    gate.unlink()
    before = actors(nodes)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    (run,) = (folder / "killed").iterdir()
    resumed = started(folder, "--resume", f"killed/{run.name}")

    assert finished(resumed)
    assert resumed.returncode == 0
    said = "".join(lines)
    assert "Ray: 2 nodes, 2 actors, each with 1 CPU" in said
    assert "is lost, its clients' turns are taken elsewhere" in said
    assert "has joined; 2 nodes, 2 actors" in said
    assert before
    deadline = time.monotonic() + 60
    while actors(nodes) and time.monotonic() < deadline:
        time.sleep(0.2)  # polls the system's processes
    assert actors(nodes) == []
    assert_same(folder / "killed", local)
