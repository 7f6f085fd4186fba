"""`nufed experiment --jobs ray`: the same files as on one machine, whoever is interrupted, killed or wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.system import ray_nodes

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
name = "own"
title = "A function of the user's own, and a table of theirs"
seeds = 1
tuning-seeds = 1
reference = "fedavg"
baseline = "per-fedavg"
[options]
"data.num-clients" = 4
"data.num-new-clients" = 2
"model.name" = "linear"
"federation.num-rounds" = 2
"evaluation.num-adapt-steps" = 2
"evaluation.primary-step" = 1
[grid]
"method.local-lr" = [0.1, 0.3]
[[settings]]
name = "made"
options = { "data.source" = "python:factories:make" }
[[settings]]
name = "table"
options = { "data.source" = "csv:tables/all.csv?label=y&user=site" }
[[methods]]
name = "fedavg"
options = { "method.num-inner-steps" = 0 }
[[methods]]
name = "per-fedavg"
options = { "method.num-inner-steps" = 1 }
"""
FACTORIES = """
import numpy as np

def make(config, seed):
    rng = np.random.default_rng(seed)
    drawn = {f"factory-{i}": rng.normal(size=(40, 3)).astype("float32") for i in range(6)}
    return {name: (inputs, (inputs.sum(1) > 0).astype(int)) for name, inputs in drawn.items()}
"""
TABLES = ("results.csv", "clients.csv", "rounds.csv", "tuning.csv")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with ray_nodes.running(tmp_path_factory.mktemp("elsewhere"), {"num_cpus": 1}, {"num_cpus": 1}) as cluster:
        yield cluster


def start(where, *words):
    command = [sys.executable, "-c", "from nufed.deploy.commands.cli import main; raise SystemExit(main())"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "experiment", "own.toml", *words],
        cwd=where,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def folder_with_the_suite(path):
    draws = np.random.default_rng(0).normal(size=(240, 2))
    rows = [f"{a:.3f},{b:.3f},{'yes' if a > b else 'no'},site-{n % 6}" for n, (a, b) in enumerate(draws)]
    (path / "tables").mkdir(parents=True)
    (path / "tables/all.csv").write_text("\n".join(["a,b,y,site", *rows]) + "\n")
    (path / "own.toml").write_text(SUITE)
    (path / "factories.py").write_text(FACTORIES)
    return path


def done_cells(where):
    return {path.parent.name: path.stat().st_mtime_ns for path in where.glob("results/own/cells/*/done.json")}


def wait_for_cells(where, count, process):
    deadline = time.monotonic() + 120
    while len(done_cells(where)) < count and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)  # polls what the processes have written


def test_files_are_those_of_one_machine_though_it_was_interrupted_and_a_node_was_lost(tmp_path, nodes):
    here, there = (folder_with_the_suite(tmp_path / name) for name in ("here", "there"))
    words = ["--jobs", "ray", "--ray-address", nodes.address]
    process = start(there, *words)
    wait_for_cells(there, 2, process)

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    before = done_cells(there)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert 2 <= len(before) < 12

    process = start(there, *words)
    wait_for_cells(there, len(before) + 1, process)
    nodes.remove(1)
    reference = start(here, "--jobs", "1")
    out, said = process.communicate(timeout=200)
    _, expected = reference.communicate(timeout=200)

    assert process.returncode == 0, said
    assert reference.returncode == 0, expected
    after = done_cells(there)
    assert "runs are done already" in out
    assert {name: after[name] for name in before} == before
    assert {*after} == {*done_cells(here)}
    for name in TABLES:
        assert (there / "results/own" / name).read_bytes() == (here / "results/own" / name).read_bytes(), name
    assert json.loads((there / "results/own/experiment.json").read_text())["record"]["jobs"] == "ray"


def test_what_ends_a_run_is_told_as_on_one_machine_and_what_ends_its_process_is_tried_again(tmp_path):
    command = [sys.executable, "-c", "from tests.system.ray_cells_toy import main; main()"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])  # Ray itself tells of dead processes before it
    assert seen["once"] == ["complete", 1]
    assert seen["wrong"]["ray"] == seen["wrong"]["processes"]
    assert seen["wrong"]["ray"].startswith("DataError")
    assert "client factory-3 has no machine" in seen["wrong"]["ray"]
    assert seen["always"].startswith("RunError: Expected the cluster to finish always, seed 0, but 2 times")
    assert not [*Path(seen["temporary"]).glob("nufed-cell-*")]
