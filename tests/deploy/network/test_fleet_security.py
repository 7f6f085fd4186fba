"""Who is not admitted, or not the one expected, is told so in one sentence; nobody hangs or is let in."""

import datetime as dt
import re
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from nufed.common.errors import ConfigError, PeerError
from nufed.deploy.network import call_failures, certificates, server_probe
from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority, revoke_client
from nufed.deploy.network.direct_client import ClientIdentity, DirectClient
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint, ServerSecurity
from nufed.deploy.network.fleet_connection import FleetConnection
from nufed.deploy.network.node_keys import AdmittedKeys
from nufed.deploy.network.server_probe import ServerAddress
from tests.deploy.network.loopback import LOOPBACK, adding_app, call, clients, request


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = CertificateFolder(tmp_path_factory.mktemp("certs"))
    create_authority(folder, ["localhost", "127.0.0.1"])
    add_client(folder, "hospital-a")
    return folder


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Certificates and keys of another federation."""
    folder = CertificateFolder(tmp_path_factory.mktemp("stranger"))
    create_authority(folder, ["localhost", "127.0.0.1"])
    add_client(folder, "hospital-x")
    return folder


def secure(folder):
    security = ServerSecurity(folder.server_certificate, folder.server_key, folder.admitted_clients)
    return ServerEndpoint("127.0.0.1:0", security)


def client(server, name, folder, *, key=None, host="127.0.0.1"):
    address = server.address.replace("127.0.0.1", host)
    identity = ClientIdentity(name, key or folder.client_key(name))
    return DirectClient(adding_app(), address, identity, root_certificates=folder.authority_certificate)


def refusal(refused):
    """Serve with a client that must be refused, and return what it says; it has 20 s to find out."""
    outcome = []

    def serve():
        try:
            refused.serve(patience=20)
        except PeerError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(20)
    refused.stop()
    thread.join(20)
    assert outcome, "the client was not refused"
    assert len(re.findall(r"\.(\s|$)", outcome[0])) == 1, f"not one sentence: {outcome[0]}"
    return outcome[0]


def round_trip(grid):
    assert grid.wait_for_nodes(1, 20)
    messages = [request(node, np.zeros(1, np.float32)) for node in grid.get_node_ids()]
    return list(grid.stream_replies(messages, timeout=20))


def test_an_admitted_client_takes_part_under_tls(folder):
    events = []
    key, roots = folder.client_key("hospital-a"), folder.authority_certificate

    with (
        DirectServer(secure(folder), on_event=events.append) as server,
        clients(server, adding_app(), names=["hospital-a"], key=key, root_certificates=roots),
    ):
        replies = call(server, round_trip)

    assert [reply.has_error() for reply in replies] == [False]
    assert "hospital-a joined (1 connected)" in events


def test_a_key_that_is_not_admitted_is_refused(folder, stranger):
    with DirectServer(secure(folder)) as server:
        said = refusal(client(server, "hospital-x", folder, key=stranger.client_key("hospital-x")))

    assert "does not know this client's key" in said


def test_a_client_without_key_is_refused(folder):
    with DirectServer(secure(folder)) as server:
        identity = ClientIdentity("nobody")
        said = refusal(
            DirectClient(adding_app(), server.address, identity, root_certificates=folder.authority_certificate)
        )

    assert "give --key" in said


def test_a_server_of_another_authority_is_not_trusted(folder, stranger):
    with DirectServer(secure(stranger)) as server:
        said = refusal(client(server, "hospital-a", folder))

    assert "not signed by an authority in --root-certificates" in said


def test_an_expired_certificate_is_named(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(certificates, "check_validity", lambda *_: None)  # our own server would not start with it
    old = CertificateFolder(tmp_path)
    create_authority(old, ["127.0.0.1"], days=3650)
    create_authority(old, ["127.0.0.1"], days=-1)

    with DirectServer(secure(old)) as server:
        said = refusal(client(server, "hospital-a", old, key=folder.client_key("hospital-a")))

    assert "has expired" in said


def test_a_name_that_the_certificate_lacks_is_named(tmp_path, folder):
    other = CertificateFolder(tmp_path)
    create_authority(other, ["fl.example.org"])

    with DirectServer(secure(other)) as server:
        by_address = refusal(client(server, "hospital-a", other, key=folder.client_key("hospital-a")))
        by_name = refusal(client(server, "hospital-a", other, key=folder.client_key("hospital-a"), host="localhost"))

    assert "not for the name '127.0.0.1'" in by_address
    assert "nufed certs init --san localhost" in by_name


def test_plaintext_against_tls_is_named(folder):
    with DirectServer(secure(folder)) as server:
        said = refusal(DirectClient(adding_app(), server.address, ClientIdentity("careless")))

    assert "speaks TLS, but --insecure was typed here" in said


def test_tls_against_plaintext_is_named(folder):
    with DirectServer(LOOPBACK) as server:
        said = refusal(client(server, "hospital-a", folder))

    assert "does not speak TLS" in said


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_that_differ_are_named(folder, monkeypatch, hours):
    monkeypatch.setattr(call_failures, "now", lambda: dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours))

    with DirectServer(secure(folder)) as server:
        said = refusal(client(server, "hospital-a", folder))

    assert "clocks" in said
    assert "differ by more than 5 minutes" in said


def test_a_web_server_is_not_taken_for_a_federation():
    with _answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        said = refusal(DirectClient(adding_app(), f"127.0.0.1:{port}", ClientIdentity("lost")))

    assert "A web server answers" in said


def test_a_service_that_says_nothing_is_waited_for_with_a_reason(monkeypatch):
    monkeypatch.setattr(server_probe, "_TIMEOUT", 0.2)

    with _answering(b"") as port:
        said = server_probe.probe(ServerAddress("127.0.0.1", port))

    assert said == "what listens there does not answer"


def test_revoking_takes_effect_on_a_running_server(tmp_path):
    folder = CertificateFolder(tmp_path)
    create_authority(folder, ["127.0.0.1"])
    add_client(folder, "leaver")
    add_client(folder, "stayer")
    events = []

    with DirectServer(secure(folder), on_event=events.append) as server:
        leaver, stayer = client(server, "leaver", folder), client(server, "stayer", folder)
        refused = []
        threads = [
            threading.Thread(target=lambda: refused.append(_refused(leaver))),
            threading.Thread(target=lambda: stayer.serve(until_finished=True)),
        ]
        [thread.start() for thread in threads]
        _until(lambda: server.num_connected() == 2)

        revoke_client(folder, "leaver")
        threads[0].join(20)
        replies = call(server, round_trip)

        server.close()
        threads[1].join(20)

    assert "revoked this client's key" in refused[0]
    assert len(replies) == 1
    assert not replies[0].has_error()
    assert any("leaver" in line and "revoked" in line for line in events)


def test_a_client_is_admitted_on_a_running_server(tmp_path):
    folder = CertificateFolder(tmp_path)
    create_authority(folder, ["127.0.0.1"])

    with DirectServer(secure(folder)) as server:
        key = add_client(folder, "newcomer")
        _until(lambda: server.service._keys.name_of(_public(folder, "newcomer")) == "newcomer")
        roots = folder.authority_certificate
        with clients(server, adding_app(), names=["newcomer"], key=key, root_certificates=roots):
            replies = call(server, round_trip)

    assert len(replies) == 1


def test_a_spoilt_key_file_does_not_shut_out_the_others(tmp_path):
    folder = CertificateFolder(tmp_path)
    create_authority(folder, ["127.0.0.1"])
    key = add_client(folder, "good")
    events = []

    with DirectServer(secure(folder), on_event=events.append) as server:
        (folder.admitted_clients / "bad.pub").write_text("not a key")
        _until(lambda: any("bad.pub" in line for line in events))
        roots = folder.authority_certificate
        with clients(server, adding_app(), names=["good"], key=key, root_certificates=roots):
            replies = call(server, round_trip)

    assert len(replies) == 1


def test_one_key_under_two_names_and_a_file_that_names_nobody_are_refused(tmp_path):
    folder = CertificateFolder(tmp_path)
    create_authority(folder, ["127.0.0.1"])
    add_client(folder, "a")
    keys = AdmittedKeys(folder.admitted_clients)
    content = folder.client_public_key("a").read_bytes()

    (folder.admitted_clients / "b.pub").write_bytes(content)
    twice = keys.refresh()
    with pytest.raises(PeerError, match=r"b.pub holds the key of 'a'"):
        AdmittedKeys(folder.admitted_clients)
    (folder.admitted_clients / "b.pub").unlink()
    folder.client_public_key("a").rename(folder.admitted_clients / "a\x1b[2J.pub")
    unnamed = keys.refresh()

    assert (twice.admitted, twice.revoked, len(twice.problems)) == ((), (), 1)
    assert "a\\x1b[2J.pub names no client" in unnamed.problems[0]
    assert len(unnamed.revoked) == 1


def test_a_node_cannot_throw_out_another(folder, stranger):
    """Activating somebody else's key would end that node's session."""
    own = ec.generate_private_key(ec.SECP384R1())

    with DirectServer(LOOPBACK) as server:
        host, port = server.address.split(":")
        address = ServerAddress(host, int(port))
        with FleetConnection(address, own, registers=True, name="victim") as victim:
            attacker = FleetConnection(address, ec.generate_private_key(ec.SECP384R1()), registers=True, name="evil")
            with attacker:
                attacker._public_key = victim._public_key
                with pytest.raises(PeerError):
                    attacker._join("evil")
            assert server.num_connected() == 1


@pytest.mark.parametrize("address", ["host", "host:", ":9092", "host:99999", "host:http"])
def test_a_server_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="Expected --server HOST:PORT"):
        ServerAddress.parse(address, None)


def _refused(client):
    try:
        client.serve(patience=20)
    except PeerError as error:
        return str(error)
    return ""


def _public(folder, name):
    from nufed.deploy.network.certificates import read_public_key

    return read_public_key(folder.client_public_key(name))


def _until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def _answering(answer):
    """A TCP service that answers everything with the same bytes, or never."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        open_connections = []

        def serve():
            while True:
                try:
                    connection, _ = service.accept()
                except OSError:
                    return
                open_connections.append(connection)
                if answer:
                    connection.recv(1024)
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield service.getsockname()[1]
        service.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        for connection in open_connections:
            connection.close()
