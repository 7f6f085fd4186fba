"""Replies as Flower's objects: what a node says about them ends nothing, fills nothing, and counts for itself alone."""

import hashlib
import json
import secrets
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import message_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from nufed.deploy.network.call_failures import RunOver
from nufed.deploy.network.direct_server import DirectServer
from nufed.deploy.network.fleet_connection import FleetConnection
from nufed.deploy.network.server_probe import ServerAddress
from tests.deploy.network.loopback import LOOPBACK, added, adding_app, call, clients, request


class Node(FleetConnection):
    """A node that answers with objects of its own making."""

    ANNOUNCES_WHOLE = False

    def announce(self, message, tree, reply_id):
        """Announce a reply and return what the server wants of it."""
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply_id
        head = message_to_proto(remove_content_from_message(reply))
        asked = fleet.PushMessagesRequest(node=self._node, messages_list=[head], message_object_trees=[tree])
        return self._call(self._stub.PushMessages, asked)[0]

    def upload(self, message, session, content):
        """Send an object and return whether it was kept."""
        part = message_pb2.PushObjectRequest(
            node=self._node,
            run_id=message.metadata.run_id,
            object_id=name(content),
            object_content=content,
            session_id=session,
        )
        return self._call(self._stub.PushObject, part)[0].stored

    def answer(self, message, contents):
        """Answer a message with objects of which the last is the reply; return which of them were kept."""
        root = name(contents[-1])
        response = self.announce(message, tree_of(root, *map(name, contents[:-1])), root)
        return [self.upload(message, response.session_id, content) for content in contents]


def thing(kind, children, body):
    """Return an object of Flower's."""
    return f"{kind} {','.join(map(name, children))} {len(body)}".encode() + b"\0" + body


def array(*chunks, indices):
    described = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": indices}
    return [*chunks, thing("Array", chunks, json.dumps(described).encode())]


def nested(depth):
    found = [thing("RecordDict", [], b"{}")]
    for _ in range(depth):
        found.append(thing("RecordDict", found[-1:], b"{}"))
    return found


def name(content):
    return hashlib.sha256(content).hexdigest()


def tree_of(root, *children):
    return message_pb2.ObjectTree(
        object_id=root, children=[message_pb2.ObjectTree(object_id=child) for child in children]
    )


def repeated_branches(depth):
    """Return a tree of a few kilobytes whose objects, followed by their names, unfold to 2^depth."""
    tree = tree_of(name(b"0"))
    for level in range(1, depth):
        tree = message_pb2.ObjectTree(object_id=name(str(level).encode()), children=[tree, tree_of(tree.object_id)])
    return tree


@contextmanager
def connected(server, *names):
    """Nodes that a test makes answer."""
    host, port = server.address.split(":")
    nodes = [
        Node(ServerAddress(host, int(port)), ec.generate_private_key(ec.SECP384R1()), registers=True, name=each)
        for each in names
    ]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.drop()


def asked(server, nodes, answer, timeout=20):
    """Send every node a message, let `answer(nodes, messages)` answer them, and return the replies by node."""

    def main(grid):
        answering.start()
        messages = [request(node.node_id, np.zeros(4, np.float32)) for node in nodes]
        return {reply.metadata.src_node_id: reply for reply in grid.stream_replies(messages, timeout=timeout)}

    def serve():
        received = [next(filter(None, iter(node.receive, 0))) for node in nodes]
        answer(nodes, received)

    answering = threading.Thread(target=serve, daemon=True)
    replies = call(server, main)
    answering.join(20)
    return replies


SPOILT = {
    "a record that is none": [thing("ConfigRecord", [], b"\xff\xff\xff")],
    "a chunk that is not there": array(thing("ArrayChunk", [], b"abcd"), indices=[7]),
    "brackets without end": [thing("Array", [], b"[" * 100_000)],
    "a number without end": [thing("Array", [], b"1" * 100_000)],
    "records in records": nested(1200),
    "three gigabytes out of one": array(thing("ArrayChunk", [], b"a" * 2**19), indices=[0] * 6000),
    "an array for a reply": array(thing("ArrayChunk", [], b"abcd"), indices=[0]),
}


def test_objects_that_make_up_no_message_are_an_error_of_their_node():
    answers = iter(SPOILT.values())

    with DirectServer(LOOPBACK) as server, connected(server, "hostile") as (node,):
        reasons = []
        for _ in SPOILT:
            (reply,) = asked(server, [node], lambda nodes, got: nodes[0].answer(got[0], next(answers))).values()
            reasons.append(reply.error.reason)

    assert all("make up no message" in reason for reason in reasons)


def test_a_small_tree_that_unfolds_without_end_holds_up_nobody():
    tree = repeated_branches(40)

    def main(grid):
        assert grid.wait_for_nodes(2, 20)
        messages = [request(node_id, np.zeros(1, np.float32)) for node_id in grid.get_node_ids()]
        return [reply.metadata.src_node_id for reply in grid.stream_replies(messages, timeout=3)]

    with DirectServer(LOOPBACK) as server, connected(server, "hostile") as (node,), clients(server, adding_app()):
        announcing = threading.Thread(
            target=lambda: node.announce(next(filter(None, iter(node.receive, 0))), tree, tree.object_id), daemon=True
        )
        announcing.start()
        replies = call(server, main)
        server.close()

    assert len(replies) == 1
    assert replies != [node.node_id]


def test_what_is_uploaded_is_bounded_and_ends_with_its_message():
    """Neither without a session, nor under a name that is not its own, nor beyond what a reply may have."""
    kept = []

    def answer(nodes, got):
        large = [thing("ArrayChunk", [], bytes([number]) * 400_000) for number in range(4)]
        response = nodes[0].announce(got[0], tree_of(root, *map(name, large)), root)
        kept.append(nodes[0].upload(got[0], "", large[0]))
        kept.append(nodes[1].upload(got[0], response.session_id, large[0]))
        kept.extend(nodes[0].upload(got[0], response.session_id, content) for content in large)
        with pytest.raises(RunOver):
            nodes[0].announce(got[0], tree_of(root), secrets.token_hex(32))

    root = secrets.token_hex(32)
    with DirectServer(LOOPBACK) as server, connected(server, "hostile", "other") as nodes:
        replies = asked(server, nodes, answer, timeout=3)
        left = len(server.service.deliveries._open), len(server._state.object_store)

    assert replies == {}
    assert kept == [False, False, True, True, False, False]
    assert left == (0, 0)


def test_a_reply_is_from_the_node_that_sent_it_whatever_its_objects_say():
    """Else one node answers for another, whose own reply then comes too late."""

    def answer(nodes, got):
        for node, amount in ((nodes[0], 7.0), (nodes[1], 1.0)):
            reply = Message(RecordDict(added(got[1].content, amount)), reply_to=got[1])  # both: to the other's message
            parts = get_all_nested_objects(reply)
            root = reply.object_id
            message = got[0] if node is nodes[0] else got[1]
            response = node.announce(message, get_object_tree(reply), root)
            assert all(node.upload(message, response.session_id, part.deflate()) for part in parts.values())

    with DirectServer(LOOPBACK) as server, connected(server, "hostile", "honest") as nodes:
        replies = asked(server, nodes, answer)
        found = {node.node_id: replies[node.node_id].content["arrays"]["0"].numpy()[0] for node in nodes}

    assert list(found.values()) == [7.0, 1.0]
