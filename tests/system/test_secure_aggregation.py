"""Secure aggregation as people run it: keys made on site, a signed roster, processes over gRPC, some of them killed."""

import pytest

from nufed.deploy.commands.cli import main
from nufed.deploy.network.key_requests import read_request
from nufed.server.app import build_server_app
from nufed.server.options import ServerOptions
from nufed.server.run_folder import load_model
from tests.deploy.simulation.secure_federation import FailingGrid, config_of, initial, same
from tests.system.processes import address_of, nufed, processes, round_records, run_folder

pytestmark = pytest.mark.system

RUN = ["--secure-aggregation", "--new-clients", "0", "--fraction", "1", "--local-steps", "1", "--inner-steps", "1"]
RUN += ["--batch-size", "8", "--set", "evaluation.interval=0"]
SITES = [f"client-{index:03d}" for index in range(4)]


def admit(certs, name):
    """What a site's people and the operator type; the key is made in a folder of the site's own."""
    assert main(["certs", "request", "--name", name, "--out", str(certs.parent / name)]) == 0
    request = certs.parent / name / f"{name}.csr"
    told = read_request(request).fingerprint  # which the site's people tell by telephone
    assert main(["certs", "admit", str(request), "--fingerprint", told, "--out", str(certs)]) == 0


def client(tmp_path, address, name, *more):
    index = SITES.index(name)
    return nufed(
        "client",
        "--server",
        address,
        "--name",
        name,
        "--once",
        "--data",
        f"digits#{index}/4",
        "--key",
        tmp_path / name / f"{name}.key",
        "--root-certificates",
        tmp_path / "certs" / "ca.crt",
        *more,
    )


def test_sites_sum_their_models_under_keys_that_the_authority_signed(tmp_path, capsys):
    """The private keys stay on the sites; who is not in the roster when the run begins is left out and told why."""
    certs = tmp_path / "certs"
    assert main(["certs", "init", "--san", "localhost", "--out", str(certs)]) == 0
    for name in SITES[:3]:
        admit(certs, name)
    assert main(["certs", "roster", "--out", str(certs)]) == 0
    assert "signed for 3 clients: client-000, client-001, client-002" in capsys.readouterr().out
    admit(certs, "client-003")  # after the roster was signed
    with processes(tmp_path) as start:
        arguments = ["--certificates", certs, "--listen", "localhost:0", "--clients", "4", "--rounds", "2", *RUN]
        server = start("server", *nufed("server", *arguments, "--out", tmp_path / "runs", "--round-timeout", "60"))
        address = address_of(server)
        sites = [start(name, *client(tmp_path, address, name, "--require-secure-aggregation")) for name in SITES]
        assert server.wait() == 0, server.output
        assert [site.wait(30) for site in sites] == [0, 0, 0, 0], sites[0].output

    config = config_of(**{"data.num-clients": 4, "federation.num-rounds": 2})
    grid = FailingGrid(config, failing={"train": (3,)})  # in this process, in the clear, of the same three clients
    build_server_app(ServerOptions(out=tmp_path / "plain"))(grid=grid, context=grid.server_context())
    plain, masked = (load_model(run_folder(tmp_path / name))[0] for name in ("plain", "runs"))
    assert same(masked, plain)
    assert not same(masked, initial(config))

    records = round_records(tmp_path / "runs")
    assert [record["secure_aggregation"]["summed"] for record in records] == [3, 3]
    assert all("roster" in record["problems"]["client-003"] for record in records)
    assert "Ask the federation's operator for a new roster" in sites[3].output
    assert not list(certs.rglob("client-*.key"))
    assert not (certs / "keys").exists()
    assert "secure" in server.output
