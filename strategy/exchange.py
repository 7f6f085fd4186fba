"""Messages out, replies in: one reply at a time, each with the node that it is from.

Works with every Flower Grid. A grid that offers more is used better:

    stream_replies(messages, timeout=...)   yields replies as they arrive, so that one model is in memory at a time
    wait_for_nodes(count, timeout)          returns when that many nodes are connected
    takes_quorum                            whether stream_replies(..., quorum=...) ends early when enough came
    simulated_now                           simulated microseconds so far, where clients have speeds; else None
    busy_nodes()                            nodes that still work on a message whose time is over
    admitted_name(node_id)                  name of the key that a node proved to have, None without keys
    note_member(node_id, client_id)         is told what a node's client is called
    node_set()                              what get_node_ids() lists, as a set
    listed_clients()                        names and groups by node id, where known without asking; or None
    wire_bytes(node_id)                     bytes that have come from a node and gone to it
    turn_away(node_id, reason)              ends a client that cannot take part; False if it cannot be told
    signed_roster()                         clients' keys as an authority signed them: file and content; or None
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from nufed.common.examples import Group
from nufed.common.privacy.secure import Roster
from nufed.common.untrusted import printable

FIRST_WAIT, LONGEST_WAIT = 0.02, 0.5
"""Seconds between two looks for replies, at first and at most."""


CLOCK_TOLERANCE = 300.0
"""Seconds by which two machines' clocks may differ; Flower's node authentication tolerates as much."""


class Quorum:
    """Counts the usable replies of one phase, and tells when it need not wait any longer.

    Attributes:
        grace: seconds that the other clients have once `enough` replies are there.
        missing: usable replies to come until there are enough; 0 or less after that.
        room: usable replies to come until the phase ends at once.
    """

    def __init__(self, enough: int, grace: float, most: int | None = None) -> None:
        """Ask for `enough` replies, after which the others have some time, and for `most`, which end the phase.

        None for `most` leaves the end to the grace alone.
        """
        self.grace = grace
        self.missing = enough
        self.room = math.inf if most is None else most
        self._ends_at: float | None = None

    def note_usable(self) -> None:
        """Count a reply that was taken and not refused."""
        self.missing -= 1
        self.room -= 1

    @property
    def is_met(self) -> bool:
        """Whether there are enough replies, so that the others are waited for no longer than the grace."""
        return self.missing <= 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many replies as the phase may have, so that it ends."""
        return self.room <= 0

    def ends_by(self, deadline: float) -> float:
        """Return until when to wait (monotonic seconds): `deadline`, or from when there are enough, the grace's end."""
        if self._ends_at is None and self.is_met:
            self._ends_at = time.monotonic() + self.grace
        return deadline if self._ends_at is None else min(deadline, self._ends_at)


MakeQuorum = Callable[[int], Quorum | None]
"""From the number of clients asked to how many replies are enough; None waits for all."""


def time_to_live(timeout: float) -> float:
    """Return the seconds after which a message that the server no longer waits for is void.

    A slow client then drops it and works on the current round. Clocks are compared across machines, hence the margin.
    """
    return timeout + CLOCK_TOLERANCE


def iter_replies(
    grid: Grid, messages: Sequence[Message], timeout: float, quorum: Quorum | None = None
) -> Iterator[tuple[int | None, Message]]:
    """Yield (node id, reply) as replies arrive, until all are in or `timeout` seconds have passed.

    The node id is None for a reply to none of the messages.

    Args:
        grid: any Flower Grid.
        messages: at most one for each node.
        timeout: seconds.
        quorum: how many replies are enough; None waits for all. Whoever takes the replies counts those that it can use.
    """
    if not messages:
        return
    if not hasattr(grid, "stream_replies"):
        stream = _poll_replies(grid, messages, timeout, quorum)
    elif quorum is None or not getattr(grid, "takes_quorum", False):
        stream = grid.stream_replies(messages, timeout=timeout)
    else:
        stream = grid.stream_replies(messages, timeout=timeout, quorum=quorum)
    sender: Callable[[Message], int | None] | None = None
    for reply in stream:
        sender = sender or sender_of(messages)
        yield sender(reply), reply
        del reply  # a model; it need not outlive the wait for the next one


def _poll_replies(grid: Grid, messages: Sequence[Message], timeout: float, quorum: Quorum | None) -> Iterator[Message]:
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
            if quorum is not None and quorum.is_full:
                return
        deadline = quorum.ends_by(deadline) if quorum else deadline
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
    found: frozenset[int] = grid.node_set() if hasattr(grid, "node_set") else frozenset(grid.get_node_ids())
    return found


def listed_clients(grid: Grid) -> Mapping[int, tuple[str, Group]] | None:
    """Return clients' names and groups by node id, where these are known without asking; None where they are not."""
    return grid.listed_clients() if hasattr(grid, "listed_clients") else None


def simulated_now(grid: Grid) -> int | None:
    """Return the simulated microseconds since the start of a run; None where time is not simulated."""
    now: int | None = getattr(grid, "simulated_now", None)
    return now


def busy_nodes(grid: Grid) -> frozenset[int]:
    """Return the ids of the nodes that still work on a message whose time is over."""
    return frozenset(grid.busy_nodes()) if hasattr(grid, "busy_nodes") else frozenset()


def admitted_name(grid: Grid, node_id: int) -> str | None:
    """Return the name of the key that a node proved to have, or None where names are the clients' own."""
    return grid.admitted_name(node_id) if hasattr(grid, "admitted_name") else None


def note_member(grid: Grid, node_id: int, client_id: str) -> None:
    """Tell the grid what a node's client is called as a member of the run, if it wants to know."""
    if hasattr(grid, "note_member"):
        grid.note_member(node_id, client_id)


def can_turn_away(grid: Grid) -> bool:
    """Return whether clients come and go, so that one that cannot take part may come back mended."""
    return hasattr(grid, "turn_away")


def turn_away(grid: Grid, node_id: int, reason: str) -> bool:
    """End a client that cannot take part, with a sentence; return whether it was told."""
    return bool(grid.turn_away(node_id, reason)) if hasattr(grid, "turn_away") else False


def signed_roster(grid: Grid) -> tuple[bytes, Roster] | None:
    """Return the clients' keys as their authority signed them, or None where no authority vouches for keys."""
    return grid.signed_roster() if hasattr(grid, "signed_roster") else None


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
