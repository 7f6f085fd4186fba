"""For how long nodes count as there: the more of them, the fewer signs of each, and none that is at work is lost."""

import secrets
import time

import pytest
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import message_pb2
from flwr.proto.node_pb2 import Node

from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.calls import Call
from nufed.deploy.network.direct_server import DirectServer
from nufed.deploy.network.file_limit import is_crowded
from nufed.deploy.network.flower_state import flower_states
from nufed.deploy.network.pieces import piece_name
from nufed.deploy.network.signs_of_life import SignsOfLife
from tests.deploy.network.loopback import LOOPBACK


@pytest.mark.parametrize(("online", "interval"), [(1, 3), (120, 3), (1000, 25), (9600, 240), (100_000, 240)])
def test_all_idle_clients_together_give_forty_signs_in_a_second(online, interval, monkeypatch):
    states = flower_states(None)
    monkeypatch.setattr(states.state(), "num_online", lambda: online)
    life = SignsOfLife(states)

    assert life.interval() == interval
    assert life.longest_hold(float("inf")) == 0.8 * interval


def test_a_request_is_answered_before_its_caller_gives_up(monkeypatch):
    states = flower_states(None)
    monkeypatch.setattr(states.state(), "num_online", lambda: 10_000)

    assert SignsOfLife(states).longest_hold(60.0) == 54.0


@pytest.mark.parametrize("method", ["PushObject", "PullObject"])
def test_a_part_of_a_message_is_a_sign_of_life(method):
    """A client that sends gigabytes over a slow line has its heartbeats queued behind them."""
    key, name = secrets.token_bytes(64), piece_name("00" * 32, 0)
    call = Call((("flwr-public-key-bin", key), (headers.WHOLE, "1"), (headers.SESSION, "it")), "test")
    with DirectServer(LOOPBACK) as server:
        server.service.RegisterNode(fleet.RegisterNodeFleetRequest(public_key=key), call)
        asked = fleet.ActivateNodeRequest(public_key=key, heartbeat_interval=10)
        node = Node(node_id=server.service.ActivateNode(asked, call).node_id)
        server._state.shorten_life(node.node_id, 1.0)
        before = server._state.nodes[node.node_id].online_until
        request = getattr(message_pb2, f"{method}Request")(node=node, object_id=name)
        getattr(server.service, method)(request, call)
        after = server._state.nodes[node.node_id].online_until
        server.service.DeactivateNode(fleet.DeactivateNodeRequest(node_id=node.node_id), call)

    assert after > before + 10


@pytest.mark.parametrize(("size", "seconds"), [(0, 15), (5_000_000, 55), (10**9, 600)])
def test_a_large_message_has_time_to_come_over_a_slow_line(size, seconds, monkeypatch):
    """Of many clients, one that takes a message gives its next sign only once it has it."""
    states = flower_states(None)
    state = states.state()
    monkeypatch.setattr(state, "num_online", lambda: 10_000)
    life, node_id = SignsOfLife(states), state.create_node("", "", b"key", 0)
    state.activate_node(node_id, 10)
    life.note(node_id, is_idle=True)

    life.note_work(node_id, size)

    assert state.nodes[node_id].online_until - time.time() == pytest.approx(seconds, abs=5)


@pytest.mark.parametrize(("limit", "expected"), [(None, False), (193, True), (1_000_000, False)])
def test_few_files_that_are_left_are_noticed(limit, expected):
    assert is_crowded(limit) is expected
