"""The direct runtime moves messages as a Flower grid must, whatever their size and whatever a client does."""

import threading
import time

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nufed.common.errors import DataError, PeerError, RunError
from nufed.deploy.network import fleet_headers, pieces
from nufed.deploy.network.call_failures import RunOver
from nufed.deploy.network.direct_client import ClientIdentity, DirectClient
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint
from nufed.deploy.network.fleet_connection import FleetConnection
from nufed.deploy.network.server_probe import ServerAddress
from tests.deploy.network.loopback import LOOPBACK, added, adding_app, call, clients, federation, request

# Flower's migrations configure alembic in a way that alembic has deprecated since.
in_database = pytest.mark.filterwarnings("ignore:No path_separator found in configuration:DeprecationWarning")


@pytest.fixture(params=["whole", "in pieces", "as objects"])
def path(request, monkeypatch):
    """Small messages travel whole, larger ones in pieces, and those of stock clients as Flower's objects: all alike."""
    if request.param == "in pieces":
        monkeypatch.setattr(fleet_headers, "WHOLE_LIMIT", -1)
        monkeypatch.setattr(pieces, "PIECE_BYTES", 64)
    if request.param == "as objects":
        monkeypatch.setattr(FleetConnection, "ANNOUNCES_WHOLE", False)
    return request.param


def connect(server, key, name="by hand"):
    host, port = server.address.split(":")
    return FleetConnection(ServerAddress(host, int(port)), key, registers=True, name=name)


def ask(values, *, count, timeout=30.0):
    """A ServerApp's main that sends `values` to `count` nodes and returns (messages, replies)."""

    def main(grid):
        assert grid.wait_for_nodes(count, 20)
        messages = [request(node, values) for node in grid.get_node_ids()]
        return messages, list(grid.stream_replies(messages, timeout=timeout))

    return main


def test_each_message_gets_its_own_reply_with_its_content(path):
    values = np.arange(7, dtype=np.float32)

    with federation(adding_app(), adding_app(), adding_app()) as (server, _):
        messages, replies = call(server, ask(values, count=3))

    assert {reply.metadata.reply_to_message_id for reply in replies} == {m.metadata.message_id for m in messages}
    assert {reply.metadata.src_node_id for reply in replies} == {m.metadata.dst_node_id for m in messages}
    for reply in replies:
        np.testing.assert_array_equal(reply.content["arrays"]["0"].numpy(), values + 1)


def test_identical_replies_from_several_clients_all_arrive(monkeypatch):
    """Flower stores equal content once; consuming one reply must not take it from another."""
    monkeypatch.setattr(FleetConnection, "ANNOUNCES_WHOLE", False)
    values = np.zeros(200_000, dtype=np.float32)

    def main(grid):
        assert grid.wait_for_nodes(3, 20)
        rounds = []
        for _ in range(15):
            messages = [request(node, values) for node in grid.get_node_ids()]
            rounds.append([reply.has_error() for reply in grid.stream_replies(messages, timeout=30)])
        return rounds

    with federation(adding_app(), adding_app(), adding_app()) as (server, started):
        rounds = call(server, main)

    assert rounds == [[False] * 3] * 15
    assert not any("dropped" in line for client in started for line in client.said)


def test_each_message_is_delivered_once(path):
    """A client that asks for the next message before its reply is consumed must not get the old one again."""
    received = []
    app = ClientApp()

    @app.train()
    def train(message, context):
        received.append(message.metadata.message_id)
        return Message(RecordDict(added(message.content, 1)), reply_to=message)

    def main(grid):
        assert grid.wait_for_nodes(2, 20)
        for _ in range(100):
            messages = [request(node, np.zeros(1, np.float32)) for node in grid.get_node_ids()]
            for _reply in grid.stream_replies(messages, timeout=30):
                time.sleep(0.005)  # consuming a reply takes a while

    with federation(app, app) as (server, started):
        call(server, main)

    assert len(received) == len(set(received)) == 200
    assert not any("dropped" in line for client in started for line in client.said)


def test_a_reply_is_handed_out_while_others_are_still_awaited():
    released = threading.Event()
    slow = ClientApp()

    @slow.train()
    def train(message, context):
        released.wait(20)
        return Message(RecordDict(added(message.content, 2)), reply_to=message)

    def main(grid):
        assert grid.wait_for_nodes(2, 20)
        firsts = []
        messages = [request(node, np.zeros(1, np.float32)) for node in grid.get_node_ids()]
        for reply in grid.stream_replies(messages, timeout=30):
            firsts.append(float(reply.content["arrays"]["0"].numpy()[0]))
            released.set()
        return firsts

    with federation(adding_app(), slow) as (server, _):
        assert call(server, main) == [1.0, 2.0]


def test_an_unanswered_message_is_withdrawn_and_the_node_takes_the_next(path):
    released = threading.Event()
    worked_on = []
    app = ClientApp()

    @app.train()
    def train(message, context):
        worked_on.append(int(message.metadata.group_id))
        if worked_on == [1]:
            released.wait(20)
        return Message(RecordDict(added(message.content, 1)), reply_to=message)

    def main(grid):
        assert grid.wait_for_nodes(1, 20)
        (node,) = grid.get_node_ids()
        late = list(grid.stream_replies([request(node, np.zeros(1, np.float32), server_round=1)], timeout=3))
        withdrawn = list(grid.stream_replies([request(node, np.zeros(1, np.float32), server_round=2)], timeout=0.1))
        released.set()
        in_time = list(grid.stream_replies([request(node, np.ones(1, np.float32), server_round=3)], timeout=20))
        return late, withdrawn, in_time

    with federation(app) as (server, started):
        late, withdrawn, in_time = call(server, main)

    assert (late, withdrawn) == ([], [])
    assert float(in_time[0].content["arrays"]["0"].numpy()[0]) == 2.0
    assert worked_on == [1, 3]
    assert any("dropped" in line for line in started[0].said)


def test_what_a_client_raises_is_its_reply(path):
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise DataError("file x.npz is missing; copy it there")

    with federation(app) as (server, _):
        _, (reply,) = call(server, ask(np.zeros(1, np.float32), count=1))

    assert reply.error.code == 2
    assert reply.error.reason == "file x.npz is missing; copy it there"


def test_state_is_left_alone_when_the_app_raises():
    app = ClientApp()
    seen = []

    @app.train()
    def train(message, context):
        seen.append(len(context.state))
        context.state["note"] = ArrayRecord([np.zeros(1)])
        if len(seen) == 1:
            raise ValueError("once")
        return Message(RecordDict(added(message.content, 1)), reply_to=message)

    def main(grid):
        assert grid.wait_for_nodes(1, 20)
        (node,) = grid.get_node_ids()
        for _ in range(3):
            list(grid.stream_replies([request(node, np.zeros(1, np.float32))], timeout=20))

    with federation(app) as (server, _):
        call(server, main)

    assert seen == [0, 0, 1]


def test_the_runs_configuration_reaches_the_clients():
    app = ClientApp()
    seen = {}

    @app.train()
    def train(message, context):
        seen.update(context.run_config)
        return Message(RecordDict(added(message.content, 1)), reply_to=message)

    with federation(app) as (server, _):
        run_config = {"seed": 7, "method.inner-lr": 0.25, "name": "trial", "flag": True}
        call(server, ask(np.zeros(1, np.float32), count=1), run_config)

    assert seen == run_config


def test_a_message_whose_client_died_is_sent_again_when_it_is_back(path):
    key = ec.generate_private_key(ec.SECP384R1())

    def die_and_come_back():
        first = connect(server, key)
        assert first.receive() is not None
        first.drop()  # as a killed process does: without a word
        with connect(server, key) as second:
            message = second.receive()
            second.send(Message(RecordDict(added(message.content, 1)), reply_to=message), 0.0)

    with DirectServer(LOOPBACK) as server:
        thread = threading.Thread(target=die_and_come_back)
        thread.start()
        messages, replies = call(server, ask(np.zeros(3, np.float32), count=1))
        thread.join(20)

    assert [reply.metadata.reply_to_message_id for reply in replies] == [messages[0].metadata.message_id]
    assert not replies[0].has_error()


def test_a_message_to_a_node_that_left_is_answered_with_an_error():
    def leave():
        with connect(server, ec.generate_private_key(ec.SECP384R1())) as connection:
            assert connection.receive() is not None

    with DirectServer(LOOPBACK) as server:
        thread = threading.Thread(target=leave)
        thread.start()
        _, (reply,) = call(server, ask(np.zeros(1, np.float32), count=1))
        thread.join(20)

    assert reply.error.code == 5


def test_a_message_to_an_unknown_node_is_answered_with_an_error():
    def main(grid):
        return list(grid.stream_replies([request(12345, np.zeros(1, np.float32))], timeout=20))

    with DirectServer(LOOPBACK) as server:
        (reply,) = call(server, main)

    assert "12345 is not registered" in reply.error.reason


def test_a_node_cannot_answer_for_another(path):
    with DirectServer(LOOPBACK) as server:
        outcome = []

        def forge():
            honest = connect(server, ec.generate_private_key(ec.SECP384R1()))
            with honest, connect(server, ec.generate_private_key(ec.SECP384R1()), "other") as other:
                message = honest.receive()
                reply = Message(RecordDict(added(message.content, 666)), reply_to=message)
                with pytest.raises(RunOver):
                    other.send(reply, 0.0)
                outcome.append("refused")

        def main(grid):
            assert grid.wait_for_nodes(2, 20)
            message = request(min(grid.get_node_ids()), np.zeros(1, np.float32))
            other = request(max(grid.get_node_ids()), np.zeros(1, np.float32))
            return [reply.has_error() for reply in grid.stream_replies([message, other], timeout=20)]

        thread = threading.Thread(target=forge)
        thread.start()
        errors = call(server, main)
        thread.join(20)

    assert outcome == ["refused"]
    assert errors == [True, True]


def test_waiting_for_more_nodes_than_come_ends_at_the_timeout():
    with federation(adding_app()) as (server, _):
        assert call(server, lambda grid: (grid.wait_for_nodes(1, 20), grid.wait_for_nodes(2, 0.3))) == (True, False)


def test_one_server_runs_one_run_after_another_with_the_same_clients():
    with federation(adding_app()) as (server, _):
        results = [call(server, ask(np.zeros(1, np.float32), count=1))[1] for _ in range(3)]

    assert [len(replies) for replies in results] == [1, 1, 1]
    assert not any(reply.has_error() for replies in results for reply in replies)


def test_what_the_server_app_raises_comes_out_and_the_server_lives():
    def fail(grid):
        raise RunError("cannot go on")

    with federation(adding_app()) as (server, _):
        with pytest.raises(RunError, match="cannot go on"):
            call(server, fail)
        _, replies = call(server, ask(np.zeros(1, np.float32), count=1))

    assert len(replies) == 1


def test_clients_are_told_that_the_run_is_over():
    with federation(adding_app(), adding_app()) as (server, started):
        call(server, ask(np.zeros(1, np.float32), count=2))

    assert [client.error for client in started] == [None, None]
    assert all(any("is over" in line for line in client.said) for client in started)


def test_a_client_that_comes_before_the_server_waits_and_says_so():
    with DirectServer(LOOPBACK) as probe:
        address = probe.address

    with clients(None, adding_app(), address=address) as (client,):
        deadline = time.monotonic() + 10
        while not client.said and time.monotonic() < deadline:
            time.sleep(0.02)
        with DirectServer(ServerEndpoint(address)) as server:
            _, replies = call(server, ask(np.zeros(1, np.float32), count=1))

    assert "no server at" in client.said[0]
    assert len(replies) == 1


def test_a_client_gives_up_after_its_patience():
    with DirectServer(LOOPBACK) as probe:
        address = probe.address
    client = DirectClient(adding_app(), address, ClientIdentity("impatient"))

    with pytest.raises(PeerError, match=r"No server could be reached .* within 0.3 s"):
        client.serve(patience=0.3)


def test_who_joins_and_leaves_is_told():
    events = []

    with federation(adding_app(), on_event=events.append) as (server, _):
        call(server, ask(np.zeros(1, np.float32), count=1))

    assert events[0] == "client-0 joined (1 connected)"


def test_the_health_service_answers_on_both_ports():
    endpoint = ServerEndpoint("127.0.0.1:0", health_address="127.0.0.1:0")

    with DirectServer(endpoint) as server:
        answers = []
        for address in (server.address, server.health_address):
            with grpc.insecure_channel(address) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answers.append(stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status)

    assert answers == [health_pb2.HealthCheckResponse.SERVING] * 2


def test_a_taken_port_is_named():
    with DirectServer(LOOPBACK) as server, pytest.raises(RunError, match=server.address):
        DirectServer(ServerEndpoint(server.address))


@pytest.mark.parametrize("address", ["9092", "localhost", "localhost:http"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(RunError, match="Expected HOST:PORT"):
        DirectServer(ServerEndpoint(address))


@in_database
def test_registrations_survive_in_a_database(tmp_path):
    key = ec.generate_private_key(ec.SECP384R1())
    endpoint = ServerEndpoint("127.0.0.1:0", database=tmp_path / "state.db")
    ids = []

    for _ in range(2):
        with DirectServer(endpoint) as server, connect(server, key) as connection:
            ids.append(connection.node_id)

    assert ids[0] == ids[1]


@in_database
def test_a_run_works_on_a_database(tmp_path, path):
    endpoint = ServerEndpoint("127.0.0.1:0", database=tmp_path / "state.db")

    with federation(adding_app(), adding_app(), endpoint=endpoint) as (server, _):
        _, replies = call(server, ask(np.zeros(3, np.float32), count=2))

    assert [reply.has_error() for reply in replies] == [False, False]
