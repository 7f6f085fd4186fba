"""Many clients at once: they race, come and go, and send faster than is folded; nothing is lost or held for long.

`make stress` runs them with thousands of clients (NUFED_STRESS, how many times as many).
"""

import asyncio
import os
import random
import secrets
import threading
import time

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from benchmarks.swarm_clients import CheapClient
from nufed.deploy.network import inflow
from nufed.deploy.network.direct_server import DirectServer
from nufed.deploy.network.flower_state import online_nodes
from tests.deploy.network.loopback import LOOPBACK, call, request

LENGTH = int(os.environ.get("NUFED_STRESS", "1"))
MIB = 2**20

pytestmark = pytest.mark.timeout(120 + 60 * LENGTH)


class Restless(CheapClient):
    """Adds one to what it is sent; now and then forgets what it took, or is another process of the same client."""

    restlessness = 0.0

    async def _answer_next(self):
        if random.random() < self.restlessness:
            self._process, self._signed_at = secrets.token_hex(16), float("-inf")
            await self._join()
        await super()._answer_next()

    def _reply(self, message):
        arrays = ArrayRecord([array.numpy() + 1 for array in message.content["arrays"].values()])
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_message_id"] = secrets.token_hex(32)
        return reply

    async def _push(self, reply):
        if random.random() >= self.restlessness:
            await super()._push(reply)


class Crowd:
    """Clients on an event loop of their own."""

    def __init__(self, address, count, kind):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(address, count, kind),))
        self._over = asyncio.Event()
        self._thread.start()

    async def _serve(self, address, count, kind):
        joining = asyncio.Semaphore(40)
        key = ec.generate_private_key
        clients = [kind(address, f"c{i}", key(ec.SECP256R1()), None, joining) for i in range(count)]
        serving = [asyncio.ensure_future(client.serve()) for client in clients]
        await self._over.wait()
        for each in serving:
            each.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.gather(*(client._channel.close() for client in clients))

    def close(self):
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)
        self._loop.close()


@pytest.mark.parametrize("restlessness", [0.0, 0.1])
def test_racing_clients_each_answer_once_and_leave_nothing_behind(restlessness, monkeypatch):
    """Replies, lost messages, joins and displaced processes race; the run ends only when all have answered."""
    monkeypatch.setattr(Restless, "restlessness", restlessness)
    count = 150 * LENGTH

    def main(grid):
        assert grid.wait_for_nodes(count, 60)
        outcomes = []
        for number in range(4):
            values = np.full(100, number, np.float32)
            replies = list(grid.stream_replies([request(node, values) for node in grid.get_node_ids()], timeout=60))
            right = [
                reply.metadata.src_node_id
                for reply in replies
                if reply.has_content() and (reply.content["arrays"]["0"].numpy() == number + 1).all()
            ]
            gave_up = [reply for reply in replies if reply.has_error() and "never answered" in reply.error.reason]
            outcomes.append((len(set(right)) + len(gave_up), len(replies)))
        return outcomes

    with DirectServer(LOOPBACK) as server:
        crowd = Crowd(server.address, count, Restless)
        try:
            outcomes = call(server, main)
        finally:
            crowd.close()
        deliveries = server.service.deliveries
        held = deliveries.held_bytes, deliveries.num_complete, len(deliveries._open), server._state.num_message_ins()

    assert outcomes == [(count, count)] * 4
    assert held == (0, 0, 0, 0)


def test_replies_that_come_faster_than_they_are_folded_wait_at_the_clients(monkeypatch):
    """Of 24 replies of 4 MB a server with room for 10 MB holds three at most, however slowly it folds."""
    monkeypatch.setattr(inflow, "BUDGET", 10_000_000)
    most, values = [], np.zeros(1_000_000, np.float32)

    def main(grid):
        assert grid.wait_for_nodes(24, 60)
        nodes = sorted(online_nodes(server._state))
        total = 0
        for reply in grid.stream_replies([request(node, values) for node in nodes], timeout=100):
            time.sleep(0.02)
            most.append(server.service.deliveries.held_bytes)
            total += bool((reply.content["arrays"]["0"].numpy() == 1).all())
        return total

    with DirectServer(LOOPBACK) as server:
        crowd = Crowd(server.address, 24, Restless)
        try:
            folded = call(server, main)
        finally:
            crowd.close()

    assert folded == 24
    assert max(most) < 15_000_000
    assert server.service.deliveries.held_bytes == 0
