"""What several threads share has one lock: nothing is lost, given out twice or raised however they race.

`make stress` repeats these tests for minutes (NUFED_STRESS, how many times as long).
"""

import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2 as fleet
from flwr.proto.node_pb2 import Node

from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network import signs_of_life
from nufed.deploy.network.direct_server import DirectServer
from nufed.deploy.network.fleet_connection import FleetConnection
from tests.deploy.network.loopback import LOOPBACK, adding_app, call, federation, request

LENGTH = int(os.environ.get("NUFED_STRESS", "1"))
"""How many times as long as in the suite."""

pytestmark = pytest.mark.timeout(60 + 120 * LENGTH)


@pytest.fixture(autouse=True)
def _threads_that_change_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class CallOf:
    """A call as the service sees it, without a network under it."""

    def __init__(self, public_key, *extra):
        self.metadata = (("flwr-public-key-bin", public_key), (headers.WHOLE, "1"), *extra)
        self.sent = {}

    def invocation_metadata(self):
        return self.metadata

    def send_initial_metadata(self, metadata):
        self.sent.update(metadata)

    def is_active(self):
        return True

    def peer(self):
        return "test"

    def abort(self, code, details):
        raise AssertionError(details)


def _reply_to(message):
    reply = Message(RecordDict({"config": ConfigRecord({"x": 1})}), reply_to=message)
    reply.metadata.__dict__["_message_id"] = secrets.token_hex(32)
    return reply


def test_replies_that_arrive_while_others_are_consumed_all_arrive_once(monkeypatch):
    """A dictionary that one thread walks through while another writes to it ends the run."""
    monkeypatch.setattr(signs_of_life, "LIVENESS_INTERVAL", 1800)  # this node sends no heartbeats
    count, key, session = 3000, secrets.token_bytes(64), ("nufed-session", secrets.token_hex(8))

    def main(grid):
        messages = [request(node_id, np.zeros(1, np.float32)) for _ in range(count)]
        everything = set(grid.push_messages(messages))  # asked for again and again: a second delivery would be seen
        left, found = set(everything), []
        with ThreadPoolExecutor(8) as pool:
            pushed = [pool.submit(push, messages[first::8]) for first in range(8)]
            while left and not any(done.done() and done.exception() for done in pushed):
                arrived = [reply.metadata.reply_to_message_id for reply in grid.pull_messages(everything)]
                found += arrived
                left -= set(arrived)
        [done.result() for done in pushed]
        found += [reply.metadata.reply_to_message_id for reply in grid.pull_messages(everything)]
        return sorted(found) == sorted(message.metadata.message_id for message in messages)

    def push(messages):
        for message in messages:
            head = message_to_proto(remove_content_from_message(_reply_to(message)))
            asked = fleet.PushMessagesRequest(node=Node(node_id=node_id), messages_list=[head])
            server.service.PushMessages(asked, CallOf(key, session))

    with DirectServer(LOOPBACK) as server:
        server.service.RegisterNode(fleet.RegisterNodeFleetRequest(public_key=key), CallOf(key))
        asked = fleet.ActivateNodeRequest(public_key=key, heartbeat_interval=1800)
        node_id = server.service.ActivateNode(asked, CallOf(key, session)).node_id
        outcomes = [call(server, main) for _ in range(LENGTH)]
        server.service.DeactivateNode(fleet.DeactivateNodeRequest(node_id=node_id), CallOf(key, session))

    assert outcomes == [True] * LENGTH


def test_equal_replies_as_objects_are_neither_lost_nor_called_late(monkeypatch):
    """Consuming one while the other is announced or uploaded."""
    monkeypatch.setattr(FleetConnection, "ANNOUNCES_WHOLE", False)
    rounds = 60 * LENGTH

    def main(grid):
        assert grid.wait_for_nodes(4, 20)
        errors = 0
        for _ in range(rounds):
            messages = [request(node, np.zeros(2000, np.float32)) for node in grid.get_node_ids()]
            errors += sum(reply.has_error() for reply in grid.stream_replies(messages, timeout=60))
        return errors

    with federation(*[adding_app() for _ in range(4)]) as (server, started):
        errors = call(server, main)

    assert errors == 0
    assert not any("dropped" in line for client in started for line in client.said)
