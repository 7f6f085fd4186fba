"""Direct and stock parts of a deployment understand each other, and the model does not tell which ones took part."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from nufed.deploy.commands.cli import main
from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority
from tests.system.processes import address_of, faulty_clients, free_address, nufed, processes, run_folder

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
CONFIG = {
    "seed": 3,
    "data.num-clients": 2,
    "data.num-new-clients": 0,
    "federation.participation-fraction": 1.0,
    "federation.num-rounds": 2,
    "evaluation.interval": 0,
}
OPTIONS = [word for key, value in CONFIG.items() for word in ("--set", f"{key}={value}")]
STOCK = {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


@pytest.fixture
def start(tmp_path):
    with processes(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The final model of the same run in one process."""
    out = tmp_path_factory.mktemp("simulated")
    assert main(["simulate", "--quiet", "--out", str(out), *OPTIONS]) == 0
    return model(out)


def model(out):
    return (run_folder(out) / "model.safetensors").read_bytes()


def supernode(start, fleet, partition, tmp_path):
    """A stock SuperNode."""
    host, port = free_address().split(":")
    command = [BIN / "flower-supernode", "--insecure", "--superlink", fleet, "--host", host, "--port", port]
    env = {**STOCK, "FLWR_HOME": str(tmp_path / f"node-{partition}")}
    return start(f"supernode-{partition}", *command, "--node-config", f"partition-id={partition}", env=env)


def test_separate_processes_under_tls_and_keys_give_the_simulated_model(start, tmp_path, simulated):
    folder = CertificateFolder(tmp_path / "certs")
    create_authority(folder, ["127.0.0.1"])
    roots = ["--root-certificates", folder.authority_certificate]

    security = ["--certificates", folder.root]
    server = start("server", *nufed("server", "--listen", "127.0.0.1:0", *security, "--out", tmp_path / "o", *OPTIONS))
    clients = []
    for index, name in enumerate(("client-000", "client-001")):
        who = ["--server", address_of(server), "--data", f"digits#{index}/2", "--name", name]
        trust = [*roots, "--key", add_client(folder, name)]
        server.wait_for(f"{name} is admitted")
        clients.append(start(name, *nufed("client", *who, *trust, "--once")))

    assert server.wait() == 0
    assert [client.wait(60) for client in clients] == [0, 0]
    assert model(tmp_path / "o") == simulated
    assert "client-001 joined" in server.output


STOCK_GRPC = pytest.mark.skipif(
    importlib.util.find_spec("flwr.client.grpc_rere_client") is None,
    reason="Flower 1.40 took gRPC out of its SuperNode; the suite runs on 1.39 for this",
)


@STOCK_GRPC
def test_a_stock_supernode_takes_part_on_our_server(start, tmp_path, simulated):
    options = ["--listen", "127.0.0.1:0", "--insecure", "--stock-clients", "--out", tmp_path / "o", *OPTIONS]

    server = start("server", *nufed("server", *options))
    address = address_of(server)
    start("ours", *faulty_clients(address, 0))
    supernode(start, address, 1, tmp_path)

    assert server.wait(400) == 0
    assert model(tmp_path / "o") == simulated


@STOCK_GRPC
def test_a_stock_superlink_runs_the_app_with_stock_and_our_clients(start, tmp_path, simulated):
    control, fleet = free_address(), free_address()
    host, port = control.split(":")
    env = {**STOCK, "FLWR_HOME": str(tmp_path / "home"), "NUFED_OUT": str(tmp_path / "o")}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "{control}"\ninsecure = true\n'
    )
    settings = " ".join(f"{key}={json.dumps(value)}" for key, value in CONFIG.items())
    run = [BIN / "flwr", "run", ".", "--run-config", settings, "--stream"]

    superlink = [BIN / "flower-superlink", "--insecure", "--host", host, "--port", port, "--fleet-api-address", fleet]
    start("superlink", *superlink, env=env).wait_for("Application startup complete")
    leaving = supernode(start, fleet, 0, tmp_path)
    supernode(start, fleet, 1, tmp_path)
    assert start("flwr", *run, env=env).wait(400) == 0
    assert model(tmp_path / "o") == simulated

    (tmp_path / "o").rename(tmp_path / "of-stock-clients")
    leaving.popen.terminate()
    leaving.wait()
    start("ours", *faulty_clients(fleet, 0))
    assert start("flwr-again", *run, env=env).wait(400) == 0
    assert model(tmp_path / "o") == simulated
