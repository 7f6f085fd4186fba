"""Memory that nothing uses any more goes back to the system."""

import ctypes
import time

_PAUSE = 2.0


class FreeMemory:
    """Gives back, now and then, what handshakes and replies have let go of.

    Both take memory for a moment, from between what lasts. The C library keeps all of it that is not at the very end of
    what it has, 6 KB for each of ten thousand clients; to give it back takes milliseconds.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._done_at = time.monotonic()

    def give_back(self) -> None:
        """Give free memory back, at most once in two seconds; only glibc does."""
        if self._trim is None or time.monotonic() - self._done_at < _PAUSE:
            return
        self._trim(0)
        self._done_at = time.monotonic()
