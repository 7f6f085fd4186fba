"""What an operator wants to know of each connection: since when, when last, at work or not, and how many bytes."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from nufed.common.events import Connection, EventStream, Joined, Left

_MOST_NODES = 20_000


@dataclass
class _Seen:
    connection: Connection
    bytes_up: int = 0
    bytes_down: int = 0
    last_seen: float = 0.0
    is_working: bool = False
    member: str = ""


class Connections:
    """Holds what is known of every node's connection; any thread may call any method.

    Args:
        events: takes who joins and leaves.
    """

    def __init__(self, events: EventStream) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._nodes: OrderedDict[int, _Seen] = OrderedDict()

    def join(self, node_id: int, name: str, key: str) -> None:
        """Note that a node is there.

        Args:
            node_id: the node.
            name: what its client is called.
            key: name of its key; empty without node keys.
        """
        now = time.time()
        with self._lock:
            seen = self._of(node_id)
            name = seen.member or name
            seen.connection = Connection(name, connected_since=now, last_seen=now, key=key)
        self._events.tell(Joined, client=name, key=key)

    def leave(self, node_id: int) -> None:
        """Note that a node is there no more."""
        with self._lock:
            if (seen := self._nodes.get(node_id)) is None:
                return
            seen.connection, seen.is_working = replace(seen.connection, is_online=False), False
            name = seen.connection.client
        self._events.tell(Left, client=name)

    def rename(self, node_id: int, name: str) -> None:
        """Note what a client calls itself as a member of the run, if its connection is called otherwise."""
        with self._lock:
            seen = self._of(node_id)
            before, seen.member = seen.connection.client, name
            if before in ("", name):
                return
            seen.connection = replace(seen.connection, client=name)
        self._events.tell(Left, client=before, reason=f"it is {name}")

    def traffic(self, node_id: int) -> tuple[int, int]:
        """Return the bytes that came from a node and that went to it, since it was first seen."""
        with self._lock:
            seen = self._nodes.get(node_id)
            return (seen.bytes_up, seen.bytes_down) if seen else (0, 0)

    def all(self) -> tuple[Connection, ...]:
        """Return the connections of all nodes that have joined, in the order of their names."""
        with self._lock:
            known = [
                replace(
                    seen.connection,
                    last_seen=max(seen.last_seen, seen.connection.last_seen),
                    is_working=seen.is_working,
                    bytes_up=seen.bytes_up,
                    bytes_down=seen.bytes_down,
                )
                for seen in self._nodes.values()
                if seen.connection.client
            ]
        return tuple(sorted(known, key=lambda connection: (connection.client, connection.connected_since)))

    def note_request(self, node_id: int, method: str, size: int) -> None:
        """Note a call of a node, and the bytes of its request."""
        with self._lock:
            seen = self._of(node_id)
            seen.last_seen = time.time()
            seen.bytes_up += size
            if method == "PushMessages":
                seen.is_working = False

    def note_response(self, node_id: int, method: str, size: int, *, is_message: bool) -> None:
        """Note what a call was answered with; with a message the node has work."""
        with self._lock:
            seen = self._of(node_id)
            seen.bytes_down += size
            if method == "PullMessages":
                seen.is_working = is_message

    def _of(self, node_id: int) -> _Seen:
        seen = self._nodes.setdefault(node_id, _Seen(Connection("", 0.0, 0.0)))
        while len(self._nodes) > _MOST_NODES:
            self._nodes.popitem(last=False)
        return seen
