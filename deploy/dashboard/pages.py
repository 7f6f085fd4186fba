"""The page's web application: its files, what it asks for, and what it may change.

Nothing here holds what a client has sent as anything but text in JSON, which the page puts into text nodes.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nufed.common.config import option_descriptions
from nufed.common.errors import LISTED
from nufed.common.metric_looks import LOOKS
from nufed.deploy.dashboard.access import HEADERS, Access
from nufed.deploy.dashboard.client_rows import Wanted
from nufed.deploy.dashboard.following import FolderFollower
from nufed.deploy.dashboard.run_view import RunView
from nufed.deploy.dashboard.shelf import LIVE, Shelf
from nufed.deploy.dashboard.stream import PAUSE, RunStream, cursor_of, to_json

STATIC = Path(__file__).parent / "static"
MOST_STREAMS = 48
_LARGEST_BODY = 4096
_AT_FIRST = 0.25
"""Seconds that a page waits for a long log to be read before it shows what there is."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass
class Dashboard:
    """What the page shows and does; holds how many readers look on.

    Attributes:
        shelf: the runs.
        access: who may see and stop them.
        stop: ends the run of this process after its round, told why; None where there is none.
        title: of the page.
        metrics: returns what `/metrics` answers and its content type, for what a request accepts; None without.
    """

    shelf: Shelf
    access: Access
    stop: Callable[[str], None] | None = None
    title: str = "NuFed"
    metrics: Callable[[str], tuple[bytes, str]] | None = None
    _readers: int = 0
    _is_closing: bool = False
    _refreshing: dict[str, "asyncio.Future[Any]"] = field(default_factory=dict)

    def application(self) -> ASGIApp:
        """Return the web application, behind its guards."""
        reading = [
            Route("/api/runs", self._runs),
            Route("/api/runs/{name}", self._run),
            Route("/api/runs/{name}/clients", self._clients),
            Route("/api/runs/{name}/stream", self._stream),
            Route("/api/runs/{name}/stop", self._stop, methods=["POST"]),
            Route("/api/compare", self._compare),
            Route("/api/experiments/{name}", self._experiment),
        ]
        if self.metrics is not None:
            reading.append(Route("/metrics", self._metrics))
        session = [
            Route("/api/session", self._session),
            Route("/api/login", self._login, methods=["POST"]),
        ]
        files = [Route(path, partial(_answer_file, file)) for path, file in _files().items()]
        return _Guard(Starlette(routes=[*session, *reading, *files]), self.access)

    def settle(self) -> None:
        """Let those who look on see how the run ended, for a moment, before the page goes."""
        self._is_closing = True
        until = time.monotonic() + 4 * PAUSE
        while self._readers and time.monotonic() < until:
            time.sleep(PAUSE / 10)

    async def _session(self, request: Request) -> Response:
        return answer(
            {
                "may_read": self.access.may_read(request),
                "csrf": self.access.csrf(request),
                "can_stop": self.stop is not None,
                "title": self.title,
                "shares": sorted(name for name, look in LOOKS.items() if look.is_share),
                "live": LIVE if self.shelf.live else None,
            }
        )

    async def _login(self, request: Request) -> Response:
        if not self.access.is_same_origin(request):
            return refusal(403, "This request comes from another page.")
        entered = self.access.enter(await _token_in(request))
        if entered is None:
            await asyncio.sleep(0.5)  # so that nobody tries many
            return refusal(401, "That is not the token. The terminal shows it, behind #token= in the page's address.")
        session, csrf = entered
        response = answer({"csrf": csrf})
        response.set_cookie(
            self.access.cookie, session, httponly=True, samesite="strict", secure=self.access.is_secure, path="/"
        )
        return response

    async def _runs(self, _request: Request) -> Response:
        listing = await run_in_threadpool(self.shelf.listing)
        live = self.shelf.live
        return answer({**listing, "head": live.head() if live else None})

    async def _run(self, request: Request) -> Response:
        view, refresh = await self._found(request)
        if view is None:
            return _no_run()
        await refresh()
        view.observed()
        snapshot = await run_in_threadpool(view.snapshot)
        return answer({**snapshot, "meanings": _meanings(), "can_stop": self._can_stop(request)})

    async def _clients(self, request: Request) -> Response:
        view, _ = await self._found(request)
        if view is None:
            return _no_run()
        return answer(await run_in_threadpool(view.page, Wanted.parse(request.query_params)))

    async def _stream(self, request: Request) -> Response | ASGIApp:
        view, refresh = await self._found(request)
        if view is None:
            return _no_run()
        if self._readers >= MOST_STREAMS:
            return refusal(503, f"{MOST_STREAMS} pages look on already. Close one of them.")
        cursor = cursor_of(request.query_params.get("after", ""))
        epoch = _whole(request.query_params.get("epoch", ""))
        return self._counted(RunStream(view, refresh, cursor, epoch, is_closing=lambda: self._is_closing))

    def _counted(self, stream: RunStream) -> Response:
        dashboard = self

        class Counted(Response):
            """Counts a reader while it reads."""

            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                dashboard._readers += 1
                try:
                    await stream(scope, receive, send)
                finally:
                    dashboard._readers -= 1

        return Counted()

    async def _stop(self, request: Request) -> Response:
        if not self.access.may_act(request):
            return refusal(403, "Stopping a run needs the token that the terminal shows.")
        if not self._can_stop(request) or self.stop is None:
            return refusal(409, "This run does not go on in this process, or is over.")
        self.stop("stopped from the page")
        return answer({"stopping": True})

    async def _metrics(self, request: Request) -> Response:
        if self.metrics is None:
            raise AssertionError("there is no such route")
        content, kind = await run_in_threadpool(self.metrics, request.headers.get("accept", ""))
        return Response(content, headers={"Cache-Control": "no-store", "Content-Type": kind})

    async def _compare(self, request: Request) -> Response:
        names = request.query_params.getlist("run")[:LISTED]
        return answer(await run_in_threadpool(self.shelf.comparison, names))

    async def _experiment(self, request: Request) -> Response:
        standing = await run_in_threadpool(self.shelf.standing, request.path_params["name"])
        return refusal(404, "There is no such experiment.") if standing is None else answer(standing)

    def _can_stop(self, request: Request) -> bool:
        live = self.shelf.live
        return self.stop is not None and request.path_params["name"] == LIVE and live is not None and not live.is_over

    async def _found(self, request: Request) -> tuple[RunView | None, Callable[[], Awaitable[object]]]:
        """Return a run's view, and what brings it up to date."""
        name = request.path_params["name"]
        if name == LIVE:
            return self.shelf.live, _nothing
        follower = await run_in_threadpool(self.shelf.follower, name)
        return (follower.view, partial(self._refresh, follower)) if follower else (None, _nothing)

    async def _refresh(self, follower: FolderFollower) -> None:
        """Read what is new in a folder, once for all who ask at the same time; a long reading is not waited for."""
        name = follower.folder.name
        running = self._refreshing.get(name)
        if running is None or running.done():
            running = asyncio.ensure_future(run_in_threadpool(follower.refresh))
            self._refreshing[name] = running
        await asyncio.wait([running], timeout=_AT_FIRST)


class _Guard:
    """Refuses requests of other hosts and of strangers, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """Stand before `app`."""
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            return
        request = Request(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                further = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *further]}
            await send(message)

        refused = self._refused(request)
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refused(self, request: Request) -> Response | None:
        if not self._access.is_known_host(request):
            return refusal(421, "This page is not known by that name. Use the address that the terminal shows.")
        needs_token = request.url.path.startswith(("/api/runs", "/api/compare", "/api/experiments", "/metrics"))
        if needs_token and not self._access.may_read(request):
            return refusal(401, "This page needs the token that the terminal shows.")
        return None


def answer(value: Any, status: int = 200) -> Response:
    """Return JSON that no browser keeps."""
    return Response(to_json(value), status, {"Cache-Control": "no-store"}, "application/json")


def refusal(status: int, sentence: str) -> Response:
    """Return why something is not done, for a person to read."""
    return answer({"error": sentence}, status)


def _no_run() -> Response:
    return refusal(404, "There is no such run. It may have been removed.")


async def _nothing() -> None:
    return None


@cache
def _meanings() -> dict[str, list[Any]]:
    """Return option -> its default and what it means."""
    return {key: list(described) for key, described in option_descriptions().items()}


async def _token_in(request: Request) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_BODY:
            return ""
    try:
        return str(json.loads(body)["token"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str
    tag: str


def _files() -> dict[str, _File]:
    """Return the page's own files by the path that asks for them: what is not among them is not there."""
    files = {}
    for path in sorted(STATIC.rglob("*")):
        if path.is_file() and path.suffix in _TYPES:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
            files[f"/{path.relative_to(STATIC).as_posix()}"] = _File(content, _TYPES[path.suffix], tag)
    files["/"] = files.pop("/index.html")
    return files


async def _answer_file(file: _File, request: Request) -> Response:
    headers = {"Cache-Control": "no-cache", "ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.kind)
