"""The event loop that a process's servers share: one thread waits for all connections."""

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def network_loop() -> asyncio.AbstractEventLoop:
    """Return the loop, started at the first call; it ends with the process.

    One for all servers, because gRPC has one poller in a process and tells every loop of each other's events.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="network", daemon=True).start()
    return loop


def run_there(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that the loop runs; not to be called on the loop."""
    return asyncio.run_coroutine_threadsafe(coroutine, network_loop()).result()


class LoopWakeup:
    """Counts its notifications, which come from any thread, and is awaited on the loop; see `Wakeup` for threads."""

    def __init__(self) -> None:
        """Start at 0."""
        self._lock = threading.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        self.count = 0

    def notify(self) -> None:
        """Wake everyone who waits."""
        with self._lock:
            self.count += 1
            waiting, self._waiting = self._waiting, set()
        if waiting:
            network_loop().call_soon_threadsafe(_wake, waiting)

    async def wait(self, seen: int, timeout: float) -> bool:
        """Return whether there was a notification since the count was `seen`, after at most `timeout` seconds."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self.count != seen:
                return True
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.add(future)
        alarm = loop.call_later(max(0.0, timeout), _wake, {future})
        try:
            await future
        finally:
            alarm.cancel()
            with self._lock:
                self._waiting.discard(future)
        return self.count != seen


def _wake(futures: set[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
