"""A wake-up to wait for: threads sleep until something happens instead of looking again and again."""

import threading


class Wakeup:
    """Counts its notifications, so that one between looking and waiting is not missed.

    Examples:
        >>> wakeup = Wakeup()
        >>> seen = wakeup.count
        >>> wakeup.notify()
        >>> wakeup.wait(seen, timeout=10.0)
        True
    """

    def __init__(self) -> None:
        self._notified = threading.Condition()
        self._count = 0

    @property
    def count(self) -> int:
        """Return how often waiters were notified."""
        return self._count

    def notify(self) -> None:
        """Wake everyone who waits."""
        with self._notified:
            self._count += 1
            self._notified.notify_all()

    def wait(self, seen: int, timeout: float | None) -> bool:
        """Return whether there was a notification since the count was `seen`, after at most `timeout` seconds."""
        with self._notified:
            return self._notified.wait_for(lambda: self._count != seen, timeout)
