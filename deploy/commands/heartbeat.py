"""A sign of life from a command that has said nothing for a while, so that nobody takes work for a hang."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Self

_FIRST, _LONGEST = 5.0, 60.0


class Heartbeat:
    """Says after 5 s, then after 10, 20, 40 and every 60 s more, what is still being done; holds what that is.

    Use it in a `with` block, which ends it.
    """

    def __init__(self, say: Callable[[str], None], what: str, *, first: float = _FIRST) -> None:
        """Say `what` by calling `say` from a thread of its own, `first` seconds after the beginning."""
        self._say, self._first = say, first
        self._changed, self._over = threading.Event(), False
        self._what, self._since = what, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Begin, and return the heartbeat."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over = True
        self._changed.set()
        self._thread.join()

    def now(self, what: str) -> None:
        """Count anew: something was said, and `what` is done from here on; empty for nothing to be said."""
        self._what, self._since = what, time.monotonic()
        self._changed.set()

    def _run(self) -> None:
        pause = self._first
        while not self._over:
            if self._changed.wait(pause):
                self._changed.clear()
                pause = self._first
            elif what := self._what:
                self._say(f"{what}, for {time.monotonic() - self._since:.0f} s so far")
                pause = min(2 * pause, _LONGEST)


def while_working(what: str) -> Heartbeat:
    """Return a heartbeat on standard error, for commands whose output is a result."""
    return Heartbeat(lambda line: print(line, file=sys.stderr), what)
