"""One server carries a hundred clients, and messages of many sizes, without losing a reply."""

import numpy as np
import pytest

from nufed.deploy.network.fleet_headers import WHOLE_LIMIT
from tests.deploy.network.loopback import adding_app, call, federation, request

pytestmark = [pytest.mark.system, pytest.mark.timeout(280)]


def phases(*, clients, sizes):
    """A ServerApp's main: one phase per size (numbers of float32), returning what was wrong in each."""

    def main(grid):
        assert grid.wait_for_nodes(clients, 60)
        wrong = []
        for number, size in enumerate(sizes):
            values = np.full(size, number, dtype=np.float32)
            nodes = grid.get_node_ids()
            replies = list(grid.stream_replies([request(node, values) for node in nodes], timeout=120))
            answered = {reply.metadata.src_node_id for reply in replies if reply.has_content()}
            right = all((reply.content["arrays"]["0"].numpy() == number + 1).all() for reply in replies)
            if answered != set(nodes) or len(nodes) != clients or not right:
                wrong.append((number, len(nodes), len(answered), right))
        return wrong

    return main


def test_a_hundred_clients_lose_no_reply_in_twenty_rounds():
    with federation(*[adding_app()] * 100) as (server, _):
        wrong = call(server, phases(clients=100, sizes=[10_000] * 20))

    assert wrong == []


def test_messages_of_any_size_arrive_whole():
    """Below, at and above the size that travels whole, and above Flower's 5 MB chunks."""
    limit = WHOLE_LIMIT // 4
    sizes = [0, 1, 1_000_000, limit - 64, limit, limit + 1, 2 * limit, 6_000_000]

    with federation(adding_app(), adding_app()) as (server, _):
        wrong = call(server, phases(clients=2, sizes=sizes))

    assert wrong == []
