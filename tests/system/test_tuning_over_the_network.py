"""`nufed tune --listen`: a search over clients that are connected, beside the same search as a simulation."""

import json
import signal
import time

import numpy as np
import pandas as pd
import pytest

from nufed.common.config import RunConfig
from nufed.deploy.commands.cli import main
from tests.system.forked import CLI
from tests.system.processes import free_address, nufed, processes

pytest.importorskip("optuna")
pytestmark = pytest.mark.system

NAMES = [f"site-{index}" for index in range(5)]
SEARCH = ["--method", "fedper", "--local-steps", "2", "--nu", "0,1", "--budget", "6", "--seeds", "2"]
SEARCH += ["--finalists", "2", "--held-out", "0.3"]
OPTIONS = """
seed = 3

[data]
source = "private"
feature-names = "age,sex"
categories = "sex:f|m"
class-names = "no,yes"
num-clients = 5
num-new-clients = 0

[federation]
num-rounds = 3
participation-fraction = 0.6
"""


@pytest.fixture
def sites(tmp_path):
    """A folder with a table for each site, one of all of them, and the options of their federation."""
    tables = []
    for index, name in enumerate(NAMES):
        rng = np.random.default_rng(index)
        frame = pd.DataFrame({"age": rng.normal(60, 9, 80), "sex": rng.choice(["f", "m"], 80)})
        frame["y"] = np.where(frame["age"] + rng.normal(0, 4, 80) > 52 + 3 * index, "yes", "no")
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        tables.append(frame.assign(site=name))
    pd.concat(tables).sample(frac=1, random_state=0).to_csv(tmp_path / "all.csv", index=False)
    (tmp_path / "run.toml").write_text(OPTIONS)
    return tmp_path


def simulated(sites):
    """The folder of the same search as a simulation of the same sites."""
    source = f"csv:{sites}/all.csv?label=y&scale=local&user=site"
    told = ["--config", sites / "run.toml", "--dataset", source, "--engine", "local", "--quiet"]
    assert main(["tune", *map(str, told), *SEARCH, "--out", str(sites / "simulated")]) == 0
    return sites / "simulated"


def tuner(sites, address):
    told = ["--config", sites / "run.toml", "--listen", address, "--insecure", "--out", sites / "connected"]
    return nufed(CLI, "tune", *told, *SEARCH)


def client(sites, address, name):
    data = f"csv:{sites}/{name}.csv?label=y&scale=local"
    kept = ["--state", sites / f"{name}.state", "--personal-model", sites / f"{name}.safetensors"]
    return nufed(CLI, "client", "--server", address, "--insecure", "--once", "--name", name, "--data", data, *kept)


def wait_until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.popen.poll() is None, process.output
        assert time.monotonic() < deadline, process.output
        time.sleep(0.01)  # polls what another process writes


def seconds_since_written(folder):
    """How long nothing has changed in a folder: as long as whoever writes there waits for somebody."""
    return time.time() - max(path.stat().st_mtime for path in folder.rglob("*"))


def num_rounds_written(folder):
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("runs/*/*/metrics.jsonl"))


def test_connected_clients_are_tuned_as_simulated_ones_though_a_client_and_the_server_are_killed(sites):
    """To the byte, with what clients keep between rounds; no trial leaves a personal model, or a client's state."""
    address, out = free_address(), sites / "connected"
    with processes(sites) as start:
        server = start("server", *tuner(sites, address))
        clients = {name: start(name, *client(sites, address, name)) for name in NAMES}
        wait_until(lambda: num_rounds_written(out) >= 1, server)
        clients["site-1"].popen.send_signal(signal.SIGSTOP)
        wait_until(lambda: seconds_since_written(out) > 0.7, server)
        clients["site-1"].kill()
        clients["site-1"] = start("site-1-again", *client(sites, address, "site-1"))
        wait_until(lambda: len(list(out.glob("runs/*/judged.json"))) >= 2, server)
        server.kill()
        assert not (out / "result.json").exists()
        server = start("server-again", *tuner(sites, address))
        expected = simulated(sites)
        assert server.wait() == 0, server.output
        assert [each.wait(30) for each in clients.values()] == [0] * 5, clients["site-0"].output

    assert (out / "trials.csv").read_bytes() == (expected / "trials.csv").read_bytes()
    best, other = (RunConfig.load(folder / "best.toml") for folder in (out, expected))
    assert best.method == other.method
    assert best.updated({"data.source": other.data.source}).data == other.data
    told = json.loads((out / "result.json").read_text())
    assert told["sentence"] == json.loads((expected / "result.json").read_text())["sentence"]
    assert "Chosen: " in server.output
    assert (sites / "site-0.state.trial-state").exists()
    assert not list(sites.glob("*.safetensors"))
    assert not list(sites.glob("*.client-state"))
