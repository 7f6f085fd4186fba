"""Server-sent events: where a run stands, again and again, as fast as the reader takes it and no faster.

There is no queue: a reader that is slow or stalled gets, when it is ready, all that has come in between in one piece,
and nothing is kept for it meanwhile. One that takes nothing for long is let go.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from nufed.common.json_text import json_ready
from nufed.deploy.dashboard.run_view import RunView

PAUSE = 0.5
"""Seconds between two looks for something new."""
_ALIVE = 10.0
"""Seconds after which a reader is told that the connection is alive, and how long the run goes on."""
_PATIENCE = 30.0
"""Seconds that a reader may take to read what it was sent."""


class RunStream:
    """An answer without end: an ASGI application that sends a run's changes."""

    def __init__(
        self,
        view: RunView,
        refresh: Callable[[], Awaitable[object]],
        cursor: tuple[int, int],
        epoch: int,
        *,
        is_closing: Callable[[], bool] = lambda: False,
    ) -> None:
        """Send what comes after `cursor` of a run, whose view `refresh` brings up to date, until it `is_closing`."""
        self._view, self._refresh, self._cursor, self._epoch = view, refresh, cursor, epoch
        self._is_closing = is_closing

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request until the reader goes."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"),
                   (b"x-accel-buffering", b"no")]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await self._send_all(send, gone)
        except (TimeoutError, OSError):
            return
        finally:
            gone.cancel()

    async def _send_all(self, send: Send, gone: "asyncio.Future[None]") -> None:
        seen, last = -1, asyncio.get_running_loop().time()
        while not gone.done():
            is_last = self._is_closing()
            await self._refresh()
            now = asyncio.get_running_loop().time()
            if self._view.epoch != self._epoch:
                self._epoch = self._view.epoch
                await _send(send, b"event: again\ndata: {}\n\n")
                self._cursor = (self._view.round_cursor(), self._view.num_lines)
            if self._view.version != seen or now - last >= _ALIVE:
                seen, last = self._view.version, now
                self._view.observed()
                news = self._view.since(self._cursor)
                self._cursor = tuple(news["cursor"])
                await _send(send, f"event: news\ndata: {json.dumps(news)}\n\n".encode())
            if is_last:
                await send({"type": "http.response.body", "body": b"event: bye\ndata: {}\n\n", "more_body": False})
                return
            await asyncio.wait([gone], timeout=PAUSE)


async def _send(send: Send, body: bytes) -> None:
    async with asyncio.timeout(_PATIENCE):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive()).get("type") != "http.disconnect":
        pass


def cursor_of(text: str) -> tuple[int, int]:
    """Return the round and the line that `12,40` stands for; the beginning for anything else."""
    done, _, line = text.partition(",")
    try:
        return int(done[:9]), int(line[:9])
    except ValueError:
        return -1, 0


def to_json(value: Any) -> bytes:
    """Return JSON in UTF-8, with null for what is not finite."""
    text = json.dumps(json_ready(value), allow_nan=False, ensure_ascii=False)
    return text.encode(errors="backslashreplace")  # half a pair of UTF-16 becomes its escape in JSON
