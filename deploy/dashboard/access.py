"""Who may see the page, and who may stop a run: hosts, tokens, cookies, and headers that keep browsers in bounds.

Reading is free on the loopback interface, and needs the token elsewhere. Stopping a run needs the token everywhere,
and a request that no other site's page can make: a cookie that it does not send, a header that it cannot set, and an
Origin that is this page's.
"""

import hmac
import ipaddress
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.requests import Request

CSRF_HEADER = "x-nufed-csrf"
_MOST_SESSIONS = 256

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass
class Access:
    """The rules of one page; holds who has shown the token.

    Attributes:
        token: what is shown once, and asked for.
        names: hosts that requests may name, without ports; any IP address is one as well if `any_address`.
        is_open: whether reading needs no token.
        is_secure: whether the page is served over TLS.
        any_address: whether requests may name any IP address: a page that listens on all of them.
        port: of the page; part of the cookie's name, for cookies know no ports.
    """

    names: frozenset[str]
    is_open: bool
    is_secure: bool = False
    any_address: bool = False
    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _sessions: OrderedDict[str, str] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def cookie(self) -> str:
        """The cookie's name."""
        return f"{'__Host-' if self.is_secure else ''}nufed-{self.port}"

    def is_known_host(self, request: Request) -> bool:
        """Return whether a request names this page's host: a page of another name that leads here does not."""
        host = host_of(request.headers.get("host", ""))
        return host in self.names or (self.any_address and _is_address(host))

    def may_read(self, request: Request) -> bool:
        """Return whether a request may be answered with what the run tells; programs show the token in a header."""
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        bears_token = scheme.lower() == "bearer" and hmac.compare_digest(shown.encode(), self.token.encode())
        return self.is_open or bears_token or self.csrf(request) is not None

    def csrf(self, request: Request) -> str | None:
        """Return what a page of this session must send with whatever changes something; None without a session."""
        with self._lock:
            return self._sessions.get(request.cookies.get(self.cookie, ""))

    def may_act(self, request: Request) -> bool:
        """Return whether a request may change something."""
        csrf = self.csrf(request)
        sent = request.headers.get(CSRF_HEADER, "")
        return csrf is not None and hmac.compare_digest(csrf, sent) and self.is_same_origin(request)

    def is_same_origin(self, request: Request) -> bool:
        """Return whether a request comes from a page of this host and port; browsers say so of every POST."""
        scheme, _, rest = request.headers.get("origin", "").partition("://")
        return scheme == ("https" if self.is_secure else "http") and rest == request.headers.get("host", "")

    def enter(self, token: str) -> tuple[str, str] | None:
        """Return a new session's cookie and what its page must send back; None for a wrong token."""
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return None
        session, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[session] = csrf
            while len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return session, csrf


def host_of(text: str) -> str:
    """Return the host of `host:port`, in lower case, without brackets.

    Examples:
        >>> host_of("LocalHost:8080"), host_of("[::1]:8080"), host_of("10.0.0.1")
        ('localhost', '::1', '10.0.0.1')
    """
    if text.startswith("["):
        return text[1:].partition("]")[0].lower()
    return text.partition(":")[0].rstrip(".").lower()


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_of(host: str, further: Iterable[str] = ()) -> frozenset[str]:
    """Return the names that a page at `host` is asked for by."""
    local = ("localhost", "127.0.0.1", "::1") if is_loopback(host) else ()
    return frozenset(name.lower() for name in (host, *local, *further))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
