"""`nufed check` finds what a deployed client would be refused for, and asks a server without joining it."""

import json
import sys
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from torch import nn

from nufed.client.workplace import forget_workplaces
from nufed.common import __version__
from nufed.common.config import RunConfig
from nufed.common.errors import NufedError, PeerError
from nufed.deploy.commands.cli import main
from nufed.deploy.commands.participant import ParticipantOptions
from nufed.deploy.network import fleet_headers, fleet_service
from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority, read_private_key
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint, ServerSecurity
from nufed.deploy.network.fleet_connection import FleetConnection
from nufed.deploy.network.handshake import shake_hands
from nufed.deploy.network.server_probe import ServerAddress
from tests.client.deployed import ask
from tests.client.test_refusals import CASES, GOOD, LABEL, SECRET, TABLE
from tests.deploy.network.loopback import LOOPBACK

UNTYPED = {"another group"}  # a node's configuration that no command line makes
TYPED = {"client-id": "--name", "personal-model": "--personal-model"}


class Overflowing(nn.Linear):
    """Outputs beyond every finite number."""

    def forward(self, inputs):
        return super().forward(inputs) * 1e38 * 1e38


def infinite(config, task):
    return Overflowing(3, 2)


def typed(case, folder, monkeypatch):
    """What `nufed check` is told of a case, and the options of its client."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "run.json").write_text(RunConfig().updated(case.run).to_json())
    node = {"client-id": "site-a", **case.node}
    words = [word for key, flag in TYPED.items() if key in node for word in (flag, str(node[key]))]
    spec = case.make(folder)
    if node.get("group") == "new":
        words.append("--new")
    participant = ParticipantOptions(spec, node["client-id"], "--new" in words)
    if "personal-model" in node:
        participant = ParticipantOptions(spec, node["client-id"], personal_model=folder / node["personal-model"])
    return ["check", "--config", str(folder / "run.json"), "--data", spec, *words], participant


def of_a_client(participant, case):
    """What `nufed client` is refused for, before it dials or at the server's first message, in its own words."""
    try:
        node_config = participant.node_config()
        ask("query", RunConfig().updated(case.run), node_config)
    except NufedError as error:
        own = error.__cause__
        return own if isinstance(own, NufedError) and "own log" in str(error) and not own.sendable else error
    raise AssertionError("the client is not refused")


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNTYPED and name != "a bomb"])
def test_whatever_a_client_is_refused_for_is_found(name, tmp_path, monkeypatch, capsys):
    """Every refusal of the catalogue: with the code and the words of the client."""
    folder = tmp_path / SECRET
    folder.mkdir()
    words, participant = typed(CASES[name], folder, monkeypatch)
    forget_workplaces()
    expected = of_a_client(participant, CASES[name])
    forget_workplaces()

    code = main(words)

    assert (code, capsys.readouterr().err.splitlines()[-1]) == (expected.exit_code, f"nufed: {expected}")


@pytest.fixture
def good(tmp_path):
    """Options and data that go together."""
    (tmp_path / "run.json").write_text(RunConfig().updated(TABLE).to_json())
    (tmp_path / "a.csv").write_text(GOOD + ",x,no\n5,,yes\n")
    spec = f"csv:{tmp_path}/a.csv{LABEL}&missing=zero"
    return ["check", "--config", str(tmp_path / "run.json"), "--data", spec, "--name", "site-a"]


def test_what_is_found_is_printed(good, capsys):
    """Rows by split and class, and the share of empty cells by column: 1 of 6 in each of two columns."""
    code = main([*good, "--json"])

    found = json.loads(capsys.readouterr().out)
    assert (code, found["ok"], found["rows"], found["client_id"]) == (0, True, 6, "site-a")
    assert sum(found["splits"].values()) == 6
    assert {name: sum(counts.values()) for name, counts in found["classes"].items()} == {"no": 3, "yes": 3}
    assert found["missing"] == pytest.approx(2 / 12)
    assert [(each["name"], round(each["missing"] * 6)) for each in found["columns"]] == [("a", 1), ("b", 1)]
    assert found["groups"] is None
    grouped = [word.replace(LABEL, f"{LABEL}&group=a&missing=drop").replace("&missing=zero", "") for word in good]
    assert main([*grouped, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == 4
    assert main(good) == 0
    assert "site-a can take part" in capsys.readouterr().out


def test_data_are_read_once(good, caplog):
    """So that what is said of them is said once."""
    words = [word.replace("&missing=zero", "&missing=drop") for word in good]

    assert main(words) == 0

    assert len([record for record in caplog.records if "leaves out 2 of 6 rows" in record.getMessage()]) == 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--set", "model.name=mlpp"], 2, "Did you mean 'mlp'"),
        (["--set", "data.class-names=no"], 3, "classes"),
        (["--name", "=cmd"], 2, "client-id"),
        (["--keep", "bets"], 2, "best or always"),
        (["--data", "csv:nowhere.csv?label=a"], 3, "no such file"),
        (["--set", "model.name=tests.deploy.commands.test_check:infinite"], 4, "finite"),
        (["--server", "127.0.0.1"], 2, "--root-certificates"),
        (["--server", "127.0.0.1:1", "--insecure"], 7, "No server could be reached"),
        (["--config", "nowhere.toml"], 2, "nowhere.toml"),
    ],
)
def test_each_kind_of_error_has_its_exit_code(good, words, code, told, capsys):
    """And as JSON the same words on standard output."""
    named = [*good]
    for flag, value in zip(words[::2], words[1::2], strict=False):
        if flag in named:
            named[named.index(flag) + 1] = value
        else:
            named += [flag, value]
    named += ["--insecure"] if "--insecure" in words else []

    assert main([*named, "--json"]) == code

    printed = capsys.readouterr()
    assert told in printed.err
    found = json.loads(printed.out)
    assert (found["ok"], found["exit_code"], f"nufed: {found['error']}") == (False, code, printed.err.splitlines()[-1])


def test_a_server_is_asked_without_joining(tmp_path):
    """Who is connected stays connected; key, name and address are tried; the server's roster hears nothing."""
    folder = CertificateFolder(tmp_path)
    create_authority(folder, ["127.0.0.1"])
    for name in ("h1", "h2"):
        add_client(folder, name)
    security = ServerSecurity(folder.server_certificate, folder.server_key, folder.admitted_clients)
    roots = folder.authority_certificate
    with DirectServer(ServerEndpoint("127.0.0.1:0", security)) as server:
        h1, h2 = folder.client_key("h1"), folder.client_key("h2")
        address = ServerAddress.parse(server.address, roots.read_bytes())
        key = read_private_key(h1)
        assert not shake_hands(server.address, "h1", key=h1, root_certificates=roots).is_taken
        assert server.num_connected() == 0
        with FleetConnection(address, key, registers=False, name="h1"):
            taken = shake_hands(server.address, "h1", key=h1, root_certificates=roots)
            free = shake_hands(server.address, "h2", key=h2, root_certificates=roots)
            assert server.num_connected() == 1
        assert (taken.is_taken, free.is_taken, taken.version, taken.is_same_version) == (True, False, __version__, True)
        with pytest.raises(PeerError, match="its key is that of 'h1', but it calls itself 'h2'"):
            shake_hands(server.address, "h2", key=h1, root_certificates=roots)
        with pytest.raises(PeerError, match="speaks TLS"):
            shake_hands(server.address, "h1", key=None, root_certificates=None)


def test_servers_that_know_no_checks_let_nobody_in(monkeypatch):
    """An earlier one refuses the name that a check has; so nothing is taken from a client that is connected."""
    with DirectServer(LOOPBACK) as server:
        address = ServerAddress.parse(server.address, None)
        with FleetConnection(address, ec.generate_private_key(ec.SECP384R1()), registers=True, name="a"):
            assert shake_hands(server.address, "a", key=None, root_certificates=None).is_taken
            earlier = SimpleNamespace(**{**vars(fleet_headers), "CHECK": "nufed-unknown"})
            monkeypatch.setattr(fleet_service, "headers", earlier)
            answer = shake_hands(server.address, "a", key=None, root_certificates=None)
            assert (answer.is_taken, answer.version, server.num_connected()) == (None, "", 1)
