"""Flower's state in memory, with what it looks for by scanning found by looking it up.

Flower walks through all nodes at every question about one of them, and through all messages for the next one of a node:
with ten thousand nodes each join costs milliseconds, and all of them together minutes.
"""

import heapq
from collections import deque
from collections.abc import Sequence

from flwr.app import Message

from nufed.deploy.flower_runtime.state import FederationManager, InMemoryLinkState, ObjectStore
from nufed.deploy.flower_runtime.wire import NodeInfo
from nufed.deploy.flower_runtime.words import NodeStatus, now


class IndexedLinkState(InMemoryLinkState):
    """Keeps beside Flower's tables which nodes are online, when each ceases to be, and the messages of each node.

    All of it is guarded by Flower's own lock.
    """

    def __init__(self, federation_manager: FederationManager, object_store: ObjectStore) -> None:
        super().__init__(federation_manager, object_store)
        self._online: set[int] = set()
        self._changed: set[int] = set()
        self._expiry: list[tuple[float, int]] = []  # one entry for each node that is online; its time may be too early
        self._inbox: dict[int, deque[str]] = {}

    # Who is there

    def online_nodes(self) -> set[int]:
        """Return the nodes that are online."""
        with self.lock:
            self._check_and_tag_offline_nodes()
            return set(self._online)

    def num_online(self) -> int:
        """Return how many nodes are online."""
        with self.lock:
            self._check_and_tag_offline_nodes()
            return len(self._online)

    def is_online(self, node_id: int) -> bool:
        """Return whether a node is online."""
        with self.lock:
            self._check_and_tag_offline_nodes()
            return node_id in self._online

    def take_changes(self) -> dict[int, bool]:
        """Return the nodes that may have come or gone since the last call, and whether each is online."""
        with self.lock:
            self._check_and_tag_offline_nodes()
            changed, self._changed = self._changed, set()
            return {node_id: node_id in self._online for node_id in changed}

    def shorten_life(self, node_id: int, seconds: float) -> None:
        """Have a node that is online count as gone after so many seconds, if it was to count for longer."""
        with self.lock:
            if node_id in self._online:
                node = self.nodes[node_id]
                node.online_until = min(node.online_until, now().timestamp() + seconds)
                heapq.heappush(self._expiry, (node.online_until, node_id))

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Make a node online that was registered or offline."""
        with self.lock:
            return self._indexed(node_id, is_done=super().activate_node(node_id, heartbeat_interval))

    def deactivate_node(self, node_id: int) -> bool:
        """Make a node offline that was online."""
        with self.lock:
            return self._indexed(node_id, is_done=super().deactivate_node(node_id))

    def acknowledge_node_heartbeat(self, node_id: int, heartbeat_interval: float) -> bool:
        """Have a node online for two intervals from now."""
        with self.lock:
            return self._indexed(node_id, is_done=super().acknowledge_node_heartbeat(node_id, heartbeat_interval))

    def delete_node(self, owner_aid: str, node_id: int) -> None:
        """Unregister a node."""
        with self.lock:
            super().delete_node(owner_aid, node_id)
            self._indexed(node_id, is_done=True)

    def get_node_info(
        self,
        *,
        node_ids: Sequence[int] | None = None,
        owner_aids: Sequence[str] | None = None,
        statuses: Sequence[str] | None = None,
    ) -> Sequence[NodeInfo]:
        """Return what is known of nodes; of those that are online without looking at the others."""
        with self.lock:
            if node_ids is None and statuses is not None and set(statuses) == {NodeStatus.ONLINE}:
                node_ids = list(self.online_nodes())
            return super().get_node_info(node_ids=node_ids, owner_aids=owner_aids, statuses=statuses)

    def _check_and_tag_offline_nodes(self, node_ids: list[int] | None = None) -> None:  # noqa: ARG002 - Flower's
        """Make nodes offline whose time is over; only those are looked at."""
        with self.lock:
            current = now().timestamp()
            while self._expiry and self._expiry[0][0] <= current:
                _, node_id = heapq.heappop(self._expiry)
                if node_id not in self._online:
                    continue
                super()._check_and_tag_offline_nodes([node_id])
                if (node := self.nodes[node_id]).status == NodeStatus.ONLINE:
                    heapq.heappush(self._expiry, (node.online_until, node_id))  # it lived on since
                else:
                    self._indexed(node_id, is_done=True)

    def _indexed(self, node_id: int, *, is_done: bool) -> bool:
        """Enter whether a node is online now, if something was done."""
        node = self.nodes.get(node_id) if is_done else None
        if node is None:
            return is_done
        is_online = node.status == NodeStatus.ONLINE
        if is_online != (node_id in self._online):
            self._changed.add(node_id)
            if is_online:
                self._online.add(node_id)
                heapq.heappush(self._expiry, (node.online_until, node_id))
            else:
                self._online.discard(node_id)
        return is_done

    # Messages

    def store_message_ins(self, message: Message) -> str | None:
        """Store a message for a node."""
        with self.lock:
            is_new = message.metadata.message_id not in self.message_ins_store
            stored = super().store_message_ins(message)
            if stored is not None and is_new:
                self._inbox.setdefault(message.metadata.dst_node_id, deque()).append(stored)
            return stored

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """Delete messages and their replies."""
        with self.lock:
            for message in filter(None, map(self.message_ins_store.get, message_ins_ids)):
                node_id, message_id = message.metadata.dst_node_id, message.metadata.message_id
                if message_id in (inbox := self._inbox.get(node_id, deque())):
                    inbox.remove(message_id)
                    if not inbox:
                        del self._inbox[node_id]
            super().delete_messages(message_ins_ids)

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """Return a node's messages that were not delivered yet, at most `limit`, and mark them as delivered."""
        if limit is not None and limit < 1:
            raise AssertionError("`limit` must be >= 1")
        found: list[Message] = []
        with self.lock:
            inbox = self._inbox.get(node_id, deque())
            passed_over: list[str] = []
            while inbox and (limit is None or len(found) < limit):
                message_id = inbox.popleft()
                self._check_stored_messages({message_id})
                message = self.message_ins_store.get(message_id)
                if message is None or message.metadata.delivered_at:
                    continue
                if run_id is not None and message.metadata.run_id != run_id:
                    passed_over.append(message_id)
                    continue
                found.append(message)
            inbox.extendleft(reversed(passed_over))
            if not inbox:
                self._inbox.pop(node_id, None)
            delivered_at = now().isoformat()
            for message in found:
                message.metadata.delivered_at = delivered_at
        return found
