"""Clients with tables of their own, as processes: trained together, judged, each left with its personal model."""

import numpy as np
import pandas as pd
import pytest

import nufed as library
from nufed.client.personal_model import hash_params, load_personal_model
from nufed.common.config import RunConfig
from nufed.common.errors import DataError
from nufed.deploy.commands.cli import main
from nufed.server.run_folder import load_model
from tests.system.processes import address_of, nufed, processes, round_records, run_folder

pytestmark = pytest.mark.system

OPTIONS = """
seed = 1  # by which a simulation of the same sites makes site-2 the new one

[data]
source = "private"
feature-names = "age,sex"
categories = "sex:f|m"
class-names = "no,yes"
num-clients = 2
num-new-clients = 1

[model]
name = "linear"

[federation]
num-rounds = 3
participation-fraction = 1.0
"""


def write_table(path, seed, classes=("no", "yes")):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"age": rng.normal(60, 9, 60), "sex": rng.choice(["f", "m"], 60)})
    frame["y"] = np.where(frame["age"] > 50 + 5 * seed, classes[1], classes[0])
    frame.to_csv(path, index=False)


def start_server(start, tmp_path):
    (tmp_path / "run.toml").write_text(OPTIONS)
    arguments = ["--listen", "127.0.0.1:0", "--insecure", "--config", tmp_path / "run.toml", "--out", tmp_path / "runs"]
    server = start("server", *nufed("server", *arguments))
    return server, address_of(server)


def client(tmp_path, address, index, *more):
    data = f"csv:{tmp_path}/{index}.csv?label=y&scale=local"
    base = ["--server", address, "--insecure", "--once", "--name", f"site-{index}", "--data", data]
    return nufed("client", *base, "--personal-model", tmp_path / f"{index}.safetensors", *more)


def test_every_client_ends_with_its_own_model(tmp_path):
    """As in a simulation, to the bit; it is what `nufed personalize` makes offline; the new client never trained."""
    for index in range(3):
        write_table(tmp_path / f"{index}.csv", index)
    with processes(tmp_path) as start:
        server, address = start_server(start, tmp_path)
        sites = [
            start(f"site-{index}", *client(tmp_path, address, index, *(["--new"] if index == 2 else [])))
            for index in range(3)
        ]
        assert server.wait() == 0, server.output
        assert [site.wait(30) for site in sites] == [0, 0, 0]

    folder = run_folder(tmp_path / "runs")
    offline = ["personalize", "--model", folder, "--name", "site-2", "--out", tmp_path / "offline.safetensors"]
    assert main([*map(str, offline), "--data", f"csv:{tmp_path}/2.csv?label=y&scale=local"]) == 0
    trained = {name for record in round_records(tmp_path / "runs") for name in record["clients"]}
    assert trained == {"site-0", "site-1"}
    assert "personal model: " in sites[0].output
    personal = [load_personal_model(tmp_path / f"{index}.safetensors") for index in range(3)]
    assert {model.base_hash for model in personal} == {hash_params(load_model(folder)[0])}
    assert len({hash_params(model.params) for model in personal}) == 3
    assert all(model.after.loss < model.before.loss for model in personal)
    assert (tmp_path / "offline.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    rehearsed = rehearsal(folder, tmp_path)
    assert hash_params(load_model(rehearsed)[0]) == hash_params(load_model(folder)[0])
    assert (rehearsed / "clients.csv").read_bytes() == (folder / "clients.csv").read_bytes()


def rehearsal(folder, tmp_path):
    """Return the folder of a simulation with the deployed run's options and a table of all its clients, mixed up."""
    tables = [pd.read_csv(tmp_path / f"{index}.csv").assign(site=f"site-{index}") for index in range(3)]
    pd.concat(tables).sample(frac=1, random_state=0).to_csv(tmp_path / "all.csv", index=False)
    source = f"csv:{tmp_path}/all.csv?label=y&scale=local&user=site"
    config = RunConfig.load(folder / "config.json").updated({"data.source": source})
    return library.simulate(config=config, out=tmp_path / "rehearsed", progress=False).path


def test_a_client_with_other_data_is_turned_away_and_named_while_the_server_waits(tmp_path):
    """Both sides are told its name, the column and the row, and no value."""
    for index in range(3):
        write_table(tmp_path / f"{index}.csv", index, classes=("no", "perhaps") if index == 1 else ("no", "yes"))
    with processes(tmp_path) as start:
        server, address = start_server(start, tmp_path)
        sites = [
            start(f"site-{index}", *client(tmp_path, address, index, *(["--new"] if index == 2 else [])))
            for index in range(3)
        ]
        assert sites[1].wait() == DataError.exit_code
        server.wait_for("is turned away")
        server.wait_for("site-1 left")
        assert server.popen.poll() is None
        assert "perhaps" in sites[1].output

    said = "client 'site-1': expected the run's classes in the label column (no, yes), but"
    assert said in " ".join(server.output.split())
    assert "perhaps" not in server.output
    assert said in sites[1].output
    assert not (tmp_path / "runs").exists()
