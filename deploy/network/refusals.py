"""What a server says of the calls that it refuses: how many of which kind, once a minute, and no byte of theirs."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from nufed.common.untrusted import LONGEST_ENDS, printable

_INTERVAL = 60.0
_MOST_LINES = 20
"""Lines in a minute about one client: who comes and goes fifty times a second would fill the screen and the log."""

_MOST_CLIENTS = 10_000
_REFUSED_AT_ONCE, _LONGEST_PAUSE = 100, 2.0
"""Refused calls in a second that are answered at once, and seconds that further ones are kept waiting."""

_MOST_RECORDS = 100
"""Warnings and errors of a library in a minute."""


class Allowance:
    """Lets things happen so many times in a minute and counts the rest; any thread may call it."""

    def __init__(self, most: int) -> None:
        """Allow `most` times."""
        self._most = most
        self._lock = threading.Lock()
        self._used, self._left_out = 0, 0
        self._since = time.monotonic()

    def take(self) -> tuple[bool, int]:
        """Return whether it may happen now, and how often it might not since it last might."""
        with self._lock:
            if time.monotonic() - self._since >= _INTERVAL:
                self._used, self._since = 0, time.monotonic()
            if self._used >= self._most:
                self._left_out += 1
                return False, 0
            self._used += 1
            left_out, self._left_out = self._left_out, 0
            return True, left_out


class Announcements:
    """Says lines about clients, of each at most so many in a minute; any thread may call it.

    Args:
        say: called with a line of text.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._allowances: dict[str, Allowance] = {}

    def __call__(self, client: str, line: str) -> None:
        """Say a line about a client, and before it how many were left out."""
        with self._lock:
            if len(self._allowances) >= _MOST_CLIENTS:
                self._allowances.clear()
            allowance = self._allowances.setdefault(client, Allowance(_MOST_LINES))
        is_said, left_out = allowance.take()
        if left_out:
            self._say(f"{left_out} more lines about {client} were left out")
        if is_said:
            self._say(line)


class Refusals:
    """Counts refused calls by kind; any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._said_at = float("-inf")
        self._second, self._in_second = 0, 0

    @property
    def totals(self) -> dict[str, int]:
        """How many calls were refused since the start, by kind."""
        with self._lock:
            return dict(self._totals)

    async def slow_down(self) -> None:
        """Keep a refused caller waiting if there are many of them, so that they cannot take the time of the others."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        if self._in_second > _REFUSED_AT_ONCE:
            await asyncio.sleep(_LONGEST_PAUSE)

    def add(self, kind: str) -> None:
        """Count a refused call; `kind` is a phrase of ours such as `calls without an admitted key`."""
        with self._lock:
            self._counts[kind] += 1
            self._totals[kind] += 1

    def take_line(self) -> str | None:
        """Return what was refused since the last line, or None if nothing was or a line was given out this minute."""
        now = time.monotonic()
        with self._lock:
            if not self._counts or now - self._said_at < _INTERVAL:
                return None
            counts, self._counts, self._said_at = self._counts, Counter(), now
        return "refused: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


class PrintableRecords(logging.Filter):
    """Makes log records of libraries safe to show: they quote what others sent, whatever its length and characters.

    Of warnings and errors, which anybody's calls can cause, only so many in a minute are shown.
    """

    def __init__(self) -> None:
        super().__init__()
        self._allowance = Allowance(_MOST_RECORDS)

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace a record's text by a printable, bounded one, and its traceback by the name of what was raised."""
        is_shown, left_out = self._allowance.take() if record.levelno >= logging.WARNING else (True, 0)
        if not is_shown:
            return False
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text, record.exc_info, record.exc_text = f"{text} ({record.exc_info[0].__name__})", None, None
        if left_out:
            text = f"{text} ({left_out} more were left out)"
        is_harmless = text.isprintable() and len(text) <= sum(LONGEST_ENDS)  # then also its spaces stay as they are
        record.msg, record.args = text if is_harmless else printable(text), ()
        return True


def make_records_printable() -> None:
    """Have what Flower and gRPC log shown printable and bounded; done once in a process."""
    for name in ("flwr", "grpc._server", "grpc._common"):
        logger = logging.getLogger(name)
        if not any(isinstance(found, PrintableRecords) for found in logger.filters):
            logger.addFilter(PrintableRecords())
