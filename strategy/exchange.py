"""Messages out, replies in: one reply at a time, each with the node that it is from.

Works with every Flower Grid. A grid that offers more is used better:

    stream_replies(messages, timeout=...)   yields replies as they arrive, so that one model is in memory at a time
    wait_for_nodes(count, timeout)          returns when that many nodes are connected
"""

import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from nufed.common.untrusted import printable

FIRST_WAIT, LONGEST_WAIT = 0.02, 0.5
"""Seconds between two looks for replies, at first and at most."""


CLOCK_TOLERANCE = 300.0
"""Seconds by which two machines' clocks may differ; Flower's node authentication tolerates as much."""


def time_to_live(timeout: float) -> float:
    """Return the seconds after which a message that the server no longer waits for is void.

    A slow client then drops it and works on the current round. Clocks are compared across machines, hence the margin.
    """
    return timeout + CLOCK_TOLERANCE


def iter_replies(grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[tuple[int | None, Message]]:
    """Yield (node id, reply) as replies arrive, until all are in or `timeout` seconds have passed.

    The node id is None for a reply to none of the messages.

    Args:
        grid: any Flower Grid.
        messages: at most one for each node.
        timeout: seconds.
    """
    if not messages:
        return
    stream = grid.stream_replies(messages, timeout=timeout) if hasattr(grid, "stream_replies") else None
    sender: Callable[[Message], int | None] | None = None
    for reply in _poll_replies(grid, messages, timeout) if stream is None else stream:
        sender = sender or sender_of(messages)
        yield sender(reply), reply
        del reply  # a model; it need not outlive the wait for the next one


def _poll_replies(grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[Message]:
    """Yield replies as repeated looks find them, less often the longer there are none."""
    deadline = time.monotonic() + timeout
    waiting = {message_id for message_id in grid.push_messages(messages) if message_id}
    wait = FIRST_WAIT
    while waiting:
        arrived = list(grid.pull_messages(sorted(waiting)))
        waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        wait = FIRST_WAIT if arrived else min(1.5 * wait, LONGEST_WAIT)
        while arrived:
            yield arrived.pop(0)
        if (left := deadline - time.monotonic()) <= 0:
            return
        if waiting:
            time.sleep(min(wait, left))


def sender_of(messages: Sequence[Message]) -> Callable[[Message], int | None]:
    """Return a function from a reply to the node whose message it answers, or None; messages must have been sent.

    A server that answers for a node which is gone puts its own id where the sender's goes, and a server that sends a
    message again gives it a new id, so either way of matching alone would lose replies. A node that answers a message
    which went to another one is believed for neither.
    """
    by_message = {message.metadata.message_id: message.metadata for message in messages}
    expected = {
        (sent.dst_node_id, sent.message_type, sent.group_id) for sent in (message.metadata for message in messages)
    }

    def sender(reply: Message) -> int | None:
        got = reply.metadata
        if got.reply_to_message_id and got.reply_to_message_id in by_message:
            sent = by_message[got.reply_to_message_id]
            return sent.dst_node_id if got.src_node_id in (sent.dst_node_id, sent.src_node_id) else None
        return got.src_node_id if (got.src_node_id, got.message_type, got.group_id) in expected else None

    return sender


def describe_error(reply: Message) -> str:
    """Return an error reply's code and reason on one line; of a long one, e.g. a traceback, its two ends."""
    return f"error {reply.error.code}: {printable(reply.error.reason or 'no reason given')}"


def connected_nodes(grid: Grid) -> frozenset[int]:
    """Return the ids of the nodes that are connected now."""
    return frozenset(grid.get_node_ids())


def wait_for_nodes(grid: Grid, count: int, timeout: float) -> bool:
    """Return whether `count` nodes were connected within `timeout` seconds."""
    if hasattr(grid, "wait_for_nodes"):
        grid.wait_for_nodes(count, max(0.0, timeout))
        timeout = 0.0
    return poll(lambda: len(connected_nodes(grid)) >= count, timeout)


def poll(condition: Callable[[], bool], timeout: float) -> bool:
    """Return whether a condition came true within `timeout` seconds; it is looked at once at least."""
    deadline, wait = time.monotonic() + timeout, FIRST_WAIT
    while not condition():
        if (left := deadline - time.monotonic()) <= 0:
            return False
        time.sleep(min(wait, left))
        wait = min(1.5 * wait, LONGEST_WAIT)
    return True
