"""Messages that are answered one by one, while others are on their way: what buffered steps need of a Flower Grid.

Works with every Grid. A grid that offers more is used better:

    send_one(message, due=None)       sends a message; in simulated time, returns when its reply is due
    next_reply(message_ids, timeout)  returns a reply to one of these messages; None if none came in time
    withdraw(message_ids)             takes back messages that nobody waits for any more
    simulated_now                     simulated microseconds so far; None where time is not simulated
"""

import time
from collections import deque
from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from nufed.strategy.exchange import FIRST_WAIT, LONGEST_WAIT, simulated_now


class OpenExchange:
    """Holds the messages that were sent and are not answered yet."""

    def __init__(self, grid: Grid) -> None:
        """Start without messages."""
        self._grid = grid
        self._sent: dict[str, Message] = {}
        self._arrived: deque[Message] = deque()
        self.strays = 0

    def now(self) -> float:
        """Return seconds since some moment: simulated ones where time is simulated."""
        simulated = simulated_now(self._grid)
        return time.monotonic() if simulated is None else simulated / 1e6

    def send(self, message: Message, due: int | None = None) -> int | None:
        """Send a message, and return when its reply is due where that is known, in simulated microseconds."""
        if hasattr(self._grid, "send_one"):
            due = self._grid.send_one(message, due)
        else:
            self._grid.push_messages([message])
        self._sent[message.metadata.message_id] = message
        return due

    def withdraw(self, message: Message) -> None:
        """Take a message back: a reply to it is one to nothing from now on."""
        if self._sent.pop(message.metadata.message_id, None) is not None and hasattr(self._grid, "withdraw"):
            self._grid.withdraw([message.metadata.message_id])

    def next_reply(self, timeout: float) -> tuple[Message, Message] | None:
        """Return a message that is answered, and its reply; None if none comes within `timeout` seconds.

        Replies to no message that is under way, as a second one is, are counted as `strays`.
        """
        deadline = time.monotonic() + timeout
        while (reply := self._pull(timeout)) is not None:
            if (sent := self._answered(reply)) is not None:
                del self._sent[sent.metadata.message_id]
                return sent, reply
            self.strays += 1
            timeout = max(0.0, deadline - time.monotonic())
        return None

    def _pull(self, timeout: float) -> Message | None:
        if hasattr(self._grid, "next_reply"):
            found: Message | None = self._grid.next_reply(set(self._sent), timeout) if self._sent else None
            return found
        deadline, wait = time.monotonic() + timeout, FIRST_WAIT
        while not self._arrived:
            self._arrived.extend(self._grid.pull_messages(sorted(self._sent)))
            if not self._arrived:
                if (left := deadline - time.monotonic()) <= 0:
                    return None
                time.sleep(min(wait, left))
                wait = min(1.5 * wait, LONGEST_WAIT)
        return self._arrived.popleft()

    def _answered(self, reply: Message) -> Message | None:
        """Return the message that a reply answers; None if there is none, or it is another node's."""
        got, by_id = reply.metadata, self._sent.get(reply.metadata.reply_to_message_id)
        if by_id is not None:
            return by_id if got.src_node_id in (by_id.metadata.dst_node_id, by_id.metadata.src_node_id) else None
        return _by_place(self._sent, reply)  # a server that sends a message again gives it a new id


def _by_place(sent: Mapping[str, Message], reply: Message) -> Message | None:
    got = reply.metadata
    wanted = got.src_node_id, got.message_type, got.group_id
    each = ((message.metadata, message) for message in sent.values())
    return next((message for about, message in each if _place(about) == wanted), None)


def _place(about: object) -> tuple[object, ...]:
    return about.dst_node_id, about.message_type, about.group_id  # type: ignore[attr-defined] # a flwr Metadata
