"""A Flower Grid whose nodes are Python functions, and clients that answer well or badly."""

import itertools
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from nufed.common.wire import ClientDescription, TrainRequest

Node = Callable[[Message], Message | None]
"""Answers one message; None stands for no answer."""


class FakeGrid(Grid):
    """Runs each node's function when its message is pushed, and hands the replies out in a chosen order."""

    def __init__(self, nodes: Mapping[int, Node], order: Callable[[list], list] = list) -> None:
        self.nodes = dict(nodes)
        self.order = order
        self.sent: list[Message] = []
        self._replies: dict[str, list[Message]] = {}
        self._numbers = itertools.count(1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run):
        raise NotImplementedError  # Flower's interface has it; a strategy that called it would be wrong

    @property
    def run(self):
        raise NotImplementedError  # likewise

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return self.order(list(self.nodes))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message_id = f"message-{next(self._numbers)}"
            ids.append(message_id)
            self.sent.append(message)
            node = self.nodes.get(message.metadata.dst_node_id)
            answer = unreachable(message) if node is None else node(message)
            self._replies[message_id] = answer if isinstance(answer, list) else [answer] if answer else []
        return ids

    def pull_messages(self, message_ids):
        return self.order([reply for message_id in message_ids for reply in self._replies.pop(message_id, [])])

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))

    def asked(self, message_type: str) -> list[int]:
        """Return the nodes that messages of a type went to."""
        return [m.metadata.dst_node_id for m in self.sent if m.metadata.message_type == message_type]


class StreamingGrid(FakeGrid):
    """Also yields replies as they arrive, as the project's own grids do."""

    def stream_replies(self, messages, timeout=None):
        ids = self.push_messages(messages)
        return iter(self.pull_messages(ids))

    def wait_for_nodes(self, count, timeout=None):
        return len(self.nodes) >= count


def unreachable(message: Message) -> Message:
    """Return what a server answers for a node that is gone: the sender is the server itself."""
    reply = Message(Error(5, "Node Unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


def error_reply(message: Message, reason: str = "<class 'ValueError'>:<'boom'>") -> Message:
    return Message(Error(2, reason), reply_to=message)


def reply(message: Message, arrays: Mapping[str, np.ndarray] | None, metrics: Mapping | None) -> Message:
    records = RecordDict()
    if arrays is not None:
        records["arrays"] = ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
    if metrics is not None:
        records["metrics"] = MetricRecord(dict(metrics))
    return Message(records, reply_to=message)


def received(message: Message) -> dict[str, np.ndarray]:
    """Return the model in a message."""
    return {name: tensor.numpy() for name, tensor in TrainRequest.from_records(message.content).params.items()}


def client(
    client_id: str,
    *,
    step: float = 1.0,
    num_examples: int = 10,
    group: str = "participating",
    train: Node | None = None,
    evaluate: Node | None = None,
) -> Node:
    """Return a node that describes itself, moves every parameter by `step`, and reports a loss."""

    def answer(message: Message) -> Message | None:
        kind = message.metadata.message_type
        if kind == "query":
            return Message(ClientDescription(client_id, group, num_examples, 2, 5).to_records(), reply_to=message)
        if kind == "evaluate":
            if evaluate:
                return evaluate(message)
            return reply(message, None, {"num-examples": 5, "test-loss": [step, step / 2]})
        if train:
            return train(message)
        moved = {name: array + np.asarray(step, array.dtype) for name, array in received(message).items()}
        return reply(message, moved, {"num-examples": num_examples, "loss": step})

    return answer
