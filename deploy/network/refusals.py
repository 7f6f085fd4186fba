"""What a server says of the calls that it refuses: how many of which kind, once a minute, and no byte of theirs."""

import logging
import threading
import time
from collections import Counter

from nufed.common.untrusted import printable

_INTERVAL = 60.0


class Refusals:
    """Counts refused calls by kind; any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._said_at = float("-inf")

    def add(self, kind: str) -> None:
        """Count a refused call; `kind` is a phrase of ours such as `calls without an admitted key`."""
        with self._lock:
            self._counts[kind] += 1

    def take_line(self) -> str | None:
        """Return what was refused since the last line, or None if nothing was or a line was given out this minute."""
        now = time.monotonic()
        with self._lock:
            if not self._counts or now - self._said_at < _INTERVAL:
                return None
            counts, self._counts, self._said_at = self._counts, Counter(), now
        return "refused: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


class PrintableRecords(logging.Filter):
    """Makes log records of libraries safe to show: they quote what others sent, whatever its length and characters."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace a record's text by a printable, bounded one, and its traceback by the name of what was raised."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text, record.exc_info, record.exc_text = f"{text} ({record.exc_info[0].__name__})", None, None
        record.msg, record.args = printable(text), ()
        return True


def make_records_printable() -> None:
    """Have what Flower and gRPC log shown printable and bounded; done once in a process."""
    for name in ("flwr", "grpc._server", "grpc._common"):
        logger = logging.getLogger(name)
        if not any(isinstance(found, PrintableRecords) for found in logger.filters):
            logger.addFilter(PrintableRecords())
