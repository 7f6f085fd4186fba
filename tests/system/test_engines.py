"""One seed, one model: in this process, on Ray actors, and with `flwr run .`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from nufed.server.run_folder import load_model
from tests.system.forked import CLI
from tests.system.processes import Process, nufed

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CONFIG = {
    "seed": 5,
    "data.num-clients": 4,
    "data.num-new-clients": 2,
    "model.dropout": 0.2,
    "method.local-optimizer": "momentum",
    "federation.server-optimizer": "adam",
    "federation.server-lr": 0.01,
    "federation.num-rounds": 2,
    "evaluation.interval": 1,
}
NUM_NODES = 6


def run(command, **environment):
    """Run a command from the repository's root and return what it printed."""
    done = subprocess.run(
        command, check=False, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def simulate(engine, out, **changes):
    config = {**CONFIG, **{key.replace("__", "."): value for key, value in changes.items()}}
    options = [word for key, value in config.items() for word in ("--set", f"{key}={value}")]
    command = nufed(CLI, "simulate", "--engine", engine, *options)
    process = Process(command, out.with_suffix(".log"), env={"NUFED_OUT": str(out)})
    try:
        assert process.wait(300) == 0, process.output
    finally:
        process.stop()
    return only_folder(out)


def only_folder(out):
    [folder] = out.iterdir()
    return folder


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def pids_with(*words):
    """Return the processes whose command line has all these words."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            typed = (process / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if set(words) <= set(typed):
            found.append(int(process.name))
    return found


def end(words, seconds=60):
    """End the processes with these words on their command line and wait until they are gone."""
    for pid in pids_with(*words):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while pids_with(*words):
        assert time.monotonic() < deadline, f"still running: {words}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    """Yield the environment of a local SuperLink that `flwr run` starts; end it afterwards."""
    home, port = tmp_path_factory.mktemp("flwr"), str(free_port())
    own = tempfile.mkdtemp(dir="/tmp")  # where Flower looks for a cluster to join: short, for the paths of sockets
    yield {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NUFED_OUT": str(home / "runs"),
        "RAY_TMPDIR": own,
    }
    end(("--simulation", "--port", port))
    shutil.rmtree(own, ignore_errors=True)


def flwr_run(environment, config):
    overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    federation = f"num-supernodes={NUM_NODES} client-resources-num-cpus=1"
    command = [BIN / "flwr", "run", ".", "--stream", "--federation-config", federation, "--run-config", overrides]
    said = run(command, **environment)
    if "ref-exit-codes" in said:  # what `flwr run` calls a success; the reason is in the log alone
        said += (Path(environment["FLWR_HOME"]) / "local-superlink/superlink.log").read_text()
    return said


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return simulate("local", tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="module", params=["ray", "flwr run"])
def other(request, tmp_path_factory):
    if request.param == "ray":
        return simulate("ray", tmp_path_factory.mktemp("ray"))
    environment = request.getfixturevalue("flower")
    said = flwr_run(environment, CONFIG)
    assert "Installing" not in said
    assert "ref-exit-codes" not in said, said
    return only_folder(Path(environment["NUFED_OUT"]))


def test_the_final_model_is_the_same_bytes(local, other):
    """Which process ran which client, in what order, through which transport, leaves no trace in the model."""
    assert (other / "model.safetensors").read_bytes() == (local / "model.safetensors").read_bytes()


def test_steps_by_hand_are_the_same_bytes_in_every_process(tmp_path):
    """Without dropout, which the network above has, its steps are not autograd's (common/steps/dense_steps.py)."""
    found = [
        (simulate(engine, tmp_path / engine, model__dropout=0.0) / "model.safetensors").read_bytes()
        for engine in ("local", "processes", "ray")
    ]

    assert found[0] == found[1] == found[2]


def test_the_adaptation_curves_are_the_same(local, other):
    """Every client is judged alike, participating and new."""
    curves = [(folder / "clients.csv").read_text(encoding="utf-8") for folder in (local, other)]

    assert curves[0] == curves[1]
    assert len(curves[0].splitlines()) == 1 + NUM_NODES


def test_every_round_is_the_same(local, other):
    """Who took part, their losses and their costs; only the seconds differ."""

    def rounds(folder):
        return [untimed(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    assert rounds(other) == rounds(local)
    assert len(rounds(local)) == CONFIG["federation.num-rounds"]


def untimed(value):
    """Return JSON data without what a clock said."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key != "seconds"}
    return value


def test_another_seed_gives_another_model(local, tmp_path):
    """The comparison can fail."""
    other = simulate("local", tmp_path / "other", seed=6)

    assert (other / "model.safetensors").read_bytes() != (local / "model.safetensors").read_bytes()


def test_flwr_run_says_what_is_wrong_with_an_option(flower):
    """Our sentence reaches the log that `flwr run --stream` shows."""
    said = flwr_run(flower, {**CONFIG, "method.inner-lr": -1.0})

    assert "method.inner-lr=-1.0 is refused" in said, said


def test_models_summed_in_secret_on_ray_are_those_of_a_run_without(tmp_path):
    """The messages of one client reach different actors, and its keys go along in its state."""
    changes = {"evaluation.interval": 0, "federation.participation-fraction": 1.0}
    masked = simulate("ray", tmp_path / "masked", **{"privacy.secure-aggregation": "true"}, **changes)
    plain = simulate("local", tmp_path / "plain", **changes)

    expected = load_model(plain)[0]
    records = [json.loads(line) for line in (masked / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_model(masked)[0].items())
    assert [record["secure_aggregation"]["summed"] for record in records] == [4, 4]
