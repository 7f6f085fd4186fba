"""A bell to wait for: threads sleep until something happens instead of looking again and again."""

import threading


class Bell:
    """Counts its rings, so that one between looking and waiting is not missed.

    Examples:
        >>> bell = Bell()
        >>> seen = bell.count
        >>> bell.ring()
        >>> bell.wait(seen, timeout=10.0)
        True
    """

    def __init__(self) -> None:
        self._rung = threading.Condition()
        self._count = 0

    @property
    def count(self) -> int:
        """Return how often the bell has rung."""
        return self._count

    def ring(self) -> None:
        """Wake everyone who waits."""
        with self._rung:
            self._count += 1
            self._rung.notify_all()

    def wait(self, seen: int, timeout: float | None) -> bool:
        """Return whether the bell has rung since its count was `seen`, after at most `timeout` seconds."""
        with self._rung:
            return self._rung.wait_for(lambda: self._count != seen, timeout)
