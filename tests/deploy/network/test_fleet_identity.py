"""A client is who its key says, one process at a time; who cannot take part is told why, and the others go on."""

import datetime as dt
import threading
import time

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from nufed.common.errors import DataError, PeerError
from nufed.common.wire import ClientDescription
from nufed.deploy.network import direct_server
from nufed.deploy.network.call_failures import ServerFinished, TurnedAway
from nufed.deploy.network.certificates import (
    CertificateFolder,
    add_client,
    check_validity,
    create_authority,
    read_certificate,
)
from nufed.deploy.network.direct_client import ClientIdentity, DirectClient
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint, ServerSecurity
from nufed.deploy.network.fleet_connection import FleetConnection
from nufed.deploy.network.server_probe import ServerAddress
from nufed.strategy.exchange import Quorum
from nufed.strategy.members import Roster
from tests.deploy.network.loopback import LOOPBACK, Client, added, call, request


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = CertificateFolder(tmp_path_factory.mktemp("certs"))
    create_authority(folder, ["127.0.0.1"])
    for name in ("h1", "h2", "evil"):
        add_client(folder, name)
    return folder


def secure(folder):
    security = ServerSecurity(folder.server_certificate, folder.server_key, folder.admitted_clients)
    return ServerEndpoint("127.0.0.1:0", security)


def describing(client_id, failure=None):
    """A ClientApp that says who it is, or raises `failure` instead, and trains by adding 1."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        if failure is not None:
            raise failure
        return Message(ClientDescription(client_id, "participating", 3, 1, 1).to_records(), reply_to=message)

    @app.train()
    def train(message, context):
        return Message(RecordDict(added(message.content, 1)), reply_to=message)

    return app


class Started:
    """Clients in threads; each must have ended by the end of the block."""

    def __init__(self, server, folder=None):
        self.server, self.folder, self.running = server, folder, []

    def __call__(self, app, name, key=None):
        roots = self.folder.authority_certificate if self.folder else None
        identity = ClientIdentity(name, self.folder.client_key(key or name) if self.folder else None)
        said = []
        client = DirectClient(app, self.server.address, identity, root_certificates=roots, on_event=said.append)
        started = Client(client, said)
        thread = threading.Thread(target=started.run)
        self.running.append((started, thread))
        thread.start()
        return started, thread

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()
        for started, thread in self.running:
            started.client.stop()
            thread.join(20)
            assert not thread.is_alive(), "a client hangs"


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def has(events, *words):
    return any(all(word in line for word in words) for line in list(events))


def test_a_key_does_not_lend_another_name(folder):
    """Neither by what the client calls itself when it connects, nor by what its app says."""
    events, met = [], []

    with DirectServer(secure(folder), on_event=events.append) as server, Started(server, folder) as start:
        liar, ended = start(describing("h1"), "h1", key="evil")
        ended.join(20)
        sly, _ = start(describing("h1"), "evil")

        def main(grid):
            roster = Roster()
            start(describing("h1"), "h1")
            roster.discover(grid, 1, 20)
            met.append({name: server.service.sessions.name(m.node_id) for name, m in roster.members.items()})
            until(lambda: sly.error is not None or not roster.refresh(grid, 5))

        call(server, main)

    assert "its key is that of 'evil', but it calls itself 'h1'" in str(liar.error)
    assert has(events, "key of evil", "called itself 'h1'")
    assert "calls itself 'h1', but has the key of 'evil'" in str(sly.error)
    assert met == [{"h1": "h1"}]


@pytest.mark.parametrize("with_keys", [True, False], ids=["one key", "one name"])
def test_the_newest_process_replaces_the_one_before_and_both_sides_say_so(folder, with_keys):
    events = []
    endpoint = secure(folder) if with_keys else LOOPBACK

    with (
        DirectServer(endpoint, on_event=events.append) as server,
        Started(server, folder if with_keys else None) as start,
    ):
        first, ended = start(describing("h1"), "h1")
        until(lambda: server.num_connected() == 1)
        second, _ = start(describing("h1"), "h1")
        ended.join(20)
        until(lambda: has(events, "is turned away, because another process took its place"))
        count = server.num_connected()
        with pytest.raises(PeerError, match="another process took its place"):
            first.client.serve(patience=5)

        def main(grid):
            return list(grid.stream_replies([request(grid.get_node_ids()[0], np.zeros(1, np.float32))], timeout=20))

        (reply,) = call(server, main)

    assert isinstance(first.error, PeerError)
    assert "another process took its place under the same key or name" in str(first.error)
    assert has(events, "h1 is connected from a new process")
    assert count == 1
    assert not reply.has_error()
    assert second.error is None


def test_a_client_that_cannot_take_part_ends_with_its_own_error_while_the_server_waits_on(folder, caplog):
    with DirectServer(secure(folder)) as server, Started(server, folder) as start:
        unfit, ended = start(describing("h1", DataError("column 'age' is missing; add it")), "h1")

        def main(grid):
            roster = Roster()
            waiting = threading.Thread(target=roster.discover, args=(grid, 2, 60))
            waiting.start()
            ended.join(20)
            still_waits = waiting.is_alive()
            start(describing("h2"), "h2")
            start(describing("h1"), "h1")  # mended, and started again
            waiting.join(20)
            return still_waits, list(roster.members)

        still_waits, members = call(server, main)

    assert isinstance(unfit.error, DataError)
    assert str(unfit.error) == "column 'age' is missing; add it"
    assert still_waits
    assert sorted(members) == ["h1", "h2"]
    assert "Client h1 is turned away" in caplog.text


def connect(server, key, name="a"):
    host, port = server.address.split(":")
    return FleetConnection(ServerAddress(host, int(port)), key, registers=True, name=name)


def test_a_node_that_comes_back_is_online_all_the_while(monkeypatch):
    """What was asked of it would be answered with an error in the moment in which it is not."""
    key = ec.generate_private_key(ec.SECP384R1())

    with DirectServer(LOOPBACK) as server, connect(server, key) as first:
        seen, watching = [], threading.Event()
        activate = server._state.acknowledge_node_heartbeat

        def slowly(*args):
            seen.append(server.num_connected())
            return activate(*args)

        monkeypatch.setattr(server._state, "acknowledge_node_heartbeat", slowly)
        monkeypatch.setattr(server._state, "deactivate_node", lambda _node: watching.set())
        with connect(server, key) as second:
            assert second.node_id == first.node_id
            assert seen
            assert set(seen) == {1}
            assert not watching.is_set()
            with pytest.raises(TurnedAway):
                first.receive()


def test_a_client_that_dies_over_its_message_each_time_costs_three_attempts_and_not_the_round():
    key, attempts = ec.generate_private_key(ec.SECP384R1()), []

    def flap():
        while len(attempts) < 5:
            connection = connect(server, key)
            try:
                connection.receive()
            except ServerFinished:
                connection.drop()
                return
            attempts.append(connection.node_id)
            connection.drop()  # as a killed process does: without a word

    def main(grid):
        assert grid.wait_for_nodes(1, 20)
        started = time.monotonic()
        replies = list(grid.stream_replies([request(grid.get_node_ids()[0], np.zeros(1, np.float32))], timeout=60))
        return replies, time.monotonic() - started

    with DirectServer(LOOPBACK) as server:
        thread = threading.Thread(target=flap)
        thread.start()
        (reply,), seconds = call(server, main)
        server.close()
        thread.join(20)

    assert "its client took it 3 times and never answered" in reply.error.reason
    assert len(attempts) == 3
    assert seconds < 30


def test_a_hanging_client_is_busy_until_it_asks_again_and_a_quorum_ends_the_wait():
    def main(grid):
        assert grid.wait_for_nodes(2, 20)
        hanging = fast.node_id
        (prompt,) = set(grid.get_node_ids()) - {hanging}
        started = time.monotonic()
        messages = [request(node, np.zeros(1, np.float32)) for node in (hanging, prompt)]
        quorum, replies = Quorum(1, grace=0.2), []
        for reply in grid.stream_replies(messages, timeout=60, quorum=quorum):
            replies.append(reply)
            quorum.note_usable()
        seconds, busy = time.monotonic() - started, grid.busy_nodes()
        grid.push_messages([request(hanging, np.zeros(1, np.float32))])
        fast.receive()
        assert not grid.busy_nodes()
        return [reply.metadata.src_node_id for reply in replies] == [prompt], busy == {hanging}, seconds

    with (
        DirectServer(LOOPBACK) as server,
        Started(server) as start,
        connect(server, ec.generate_private_key(ec.SECP384R1()), "hanging") as fast,
    ):
        start(describing("b"), "b")
        outcome = call(server, main)

    assert outcome[:2] == (True, True)
    assert outcome[2] < 20


def test_a_client_at_work_while_its_server_is_started_again_drops_the_reply_and_goes_on(monkeypatch):
    monkeypatch.setattr(direct_server, "_FAREWELL", 0)
    taken, release = threading.Event(), threading.Event()
    app = ClientApp()

    @app.train()
    def train(message, context):
        taken.set()
        assert release.wait(20)
        return Message(RecordDict(added(message.content, 1)), reply_to=message)

    def leave_at_work(grid):
        assert grid.wait_for_nodes(1, 20)
        grid.push_messages([request(node_id, np.zeros(1, np.float32)) for node_id in grid.get_node_ids()])
        assert taken.wait(20)

    def ask_again(grid):
        release.set()
        assert grid.wait_for_nodes(1, 20)
        messages = [request(node_id, np.zeros(1, np.float32)) for node_id in grid.get_node_ids()]
        return [reply.has_error() for reply in grid.stream_replies(messages, timeout=30)]

    with DirectServer(LOOPBACK) as server, Started(server) as start:
        started, _ = start(app, "a")
        address = server.address
        call(server, leave_at_work)
        server.close()
        with DirectServer(ServerEndpoint(address)) as again:
            answers = call(again, ask_again)

    assert answers == [False]
    dropped = [line for line in started.said if "is dropped" in line]
    assert dropped == ["the server was started again and knows nothing of the message; the reply is dropped"]


@pytest.mark.parametrize(
    ("days", "hours_from_now", "outcome"),
    [
        (365, 0, None),
        (20, 0, "expires in 19 days"),
        (20, 21 * 24, "expired on"),
        (365, -24, "is valid from .* on"),
    ],
)
def test_a_server_does_not_start_with_a_certificate_that_no_client_would_trust(tmp_path, days, hours_from_now, outcome):
    folder = CertificateFolder(tmp_path)
    create_authority(folder, ["127.0.0.1"], days=days)
    content = read_certificate(folder.server_certificate, "it")
    now = dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours_from_now)

    if hours_from_now:
        with pytest.raises(PeerError, match=outcome):
            check_validity(content, folder.server_certificate, now=now)
    else:
        warning = check_validity(content, folder.server_certificate, now=now)
        assert warning is None if outcome is None else outcome in warning


def test_an_expired_certificate_ends_the_server_at_its_start(tmp_path):
    folder = CertificateFolder(tmp_path)
    create_authority(folder, ["127.0.0.1"], days=-1)

    with pytest.raises(PeerError, match="expired on"):
        DirectServer(secure(folder))


def test_names_of_any_script_arrive_and_what_is_no_name_is_refused():
    events = []

    with DirectServer(LOOPBACK, on_event=events.append) as server:
        with connect(server, ec.generate_private_key(ec.SECP384R1()), "Klinik München, 东京"):
            until(lambda: has(events, "Klinik München, 东京 joined"))
        for name in ("a\nb", "\x1b[31m", "x" * 65):
            with pytest.raises(TurnedAway, match="its name is none"):
                connect(server, ec.generate_private_key(ec.SECP384R1()), name)
