"""Backpressure: replies that come faster than they are folded wait at the clients, unread, and not in this memory.

A call's request is read off its connection only when there is room for it. Room is taken by what is being read, by
pieces of replies, and by whole replies until the ServerApp has done with them (`Deliveries.held_bytes`). When there is
none left, one client at a time may go on with the reply that it has begun, so that replies get complete and room comes
back; one that does not go on for a while makes place for the next. So no more is held than the budget and one reply.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nufed.deploy.network.deliveries import Deliveries
from nufed.deploy.network.network_loop import network_loop

BUDGET = 256 * 2**20
"""Bytes of replies that are held at a time."""

_PATIENCE = 5.0
"""Seconds that the one client which may go on has for its next call."""


class Inflow:
    """Lets calls with content in; only the network's loop calls it.

    Args:
        deliveries: knows what is held, and says when something is let go of.
        budget: bytes.
    """

    def __init__(self, deliveries: Deliveries, *, budget: int | None = None) -> None:
        self._deliveries, self._budget = deliveries, BUDGET if budget is None else budget
        self._coming = 0  # bytes of requests that are being read or answered
        self._begun: OrderedDict[int, deque[tuple[asyncio.Future[None], int]]] = OrderedDict()
        self._new: OrderedDict[int, deque[tuple[asyncio.Future[None], int]]] = OrderedDict()
        self._favourite: int | None = None  # the node that goes on while there is no room
        self._alarm: asyncio.TimerHandle | None = None
        deliveries.on_released = lambda: network_loop().call_soon_threadsafe(self._let_in)

    @property
    def num_waiting(self) -> int:
        """Return how many nodes have calls that wait."""
        return len(self._begun) + len(self._new)

    @asynccontextmanager
    async def room(self, node_id: int, size: int) -> AsyncIterator[None]:
        """Wait for room for `size` bytes of a node's call, and have it until the call is answered."""
        await self._enter(node_id, size)
        try:
            yield
        finally:
            self._leave(size)

    async def _enter(self, node_id: int, size: int) -> None:
        if not self.num_waiting and self._fits(size):
            self._coming += size
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._begun if self._deliveries.held_by(node_id) else self._new
        queue.setdefault(node_id, deque()).append((future, size))
        self._let_in()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._leave(size)
            raise

    def _leave(self, size: int) -> None:
        self._coming -= size
        self._let_in()

    def _fits(self, size: int) -> bool:
        return self._coming + self._deliveries.held_bytes + size <= self._budget

    def _let_in(self) -> None:
        """Let in what there is room for: who has begun a reply before who has not."""
        while self.num_waiting:
            queue = self._begun or self._new
            node_id = next(iter(queue))
            if self._favourite is not None and self._favourite in self._begun:
                queue, node_id = self._begun, self._favourite
            future, size = queue[node_id][0]
            if future.done():  # its caller is gone
                self._drop(queue, node_id)
                continue
            if not (self._fits(size) or self._may_overrun(node_id)):
                break
            self._drop(queue, node_id)
            self._coming += size
            future.set_result(None)
        if self.num_waiting and self._alarm is None:
            self._alarm = network_loop().call_later(_PATIENCE, self._change_favourite, self._favourite, self._done())

    def _may_overrun(self, node_id: int) -> bool:
        """Return whether a node is the one that may go on without room, because it is to make some."""
        if self._favourite is not None and not self._deliveries.held_by(self._favourite):
            self._favourite = None  # its reply was folded or withdrawn
        if self._favourite is None and not self._deliveries.num_complete and not self._coming:
            self._favourite = node_id
        return self._favourite == node_id and not self._deliveries.num_complete

    def _change_favourite(self, before: int | None, done: tuple[int, int]) -> None:
        """Let another node go on if nothing has happened for a while."""
        self._alarm = None
        if before == self._favourite and done == self._done() and self.num_waiting:
            if self._favourite is not None and self._favourite in self._begun:
                self._begun.move_to_end(self._favourite)
            self._favourite = next(iter(self._begun or self._new))
        self._let_in()

    def _done(self) -> tuple[int, int]:
        return self._coming, self._deliveries.held_bytes

    @staticmethod
    def _drop(queue: OrderedDict[int, deque[tuple[asyncio.Future[None], int]]], node_id: int) -> None:
        queue[node_id].popleft()
        if not queue[node_id]:
            del queue[node_id]


class Outflow:
    """Bounds what is on its way to clients; only the network's loop calls it."""

    LONGEST = 60.0
    """Seconds after which what a client has not taken counts no more, so that none holds up the others."""

    def __init__(self, budget: int = BUDGET) -> None:
        """Allow `budget` bytes at a time."""
        self._budget, self._going = budget, 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be sent; `give_back` is to follow."""
        if not self._waiting and self._fits(size):
            self._going += size
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, size))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back(size)
            raise

    def give_back(self, size: int) -> None:
        """Note that so many bytes are gone."""
        self._going -= size
        while self._waiting and (self._waiting[0][0].done() or self._fits(self._waiting[0][1])):
            future, next_size = self._waiting.popleft()
            if not future.done():
                self._going += next_size
                future.set_result(None)

    def _fits(self, size: int) -> bool:
        return not self._going or self._going + size <= self._budget
