"""Ending a run from elsewhere: a page's button, a supervisor, another thread."""

import threading

from nufed.common.untrusted import printable


class RunControl:
    """Holds whether a run is to end after its present round; any thread may ask for it.

    A run that is ended so leaves what one leaves that was ended by Ctrl-C: a whole folder, with which it can go on.

    Examples:
        >>> control = RunControl()
        >>> control.request_stop("the operator has pressed stop")
        >>> control.stop_reason
        'the operator has pressed stop'
    """

    def __init__(self) -> None:
        """Let the run go on."""
        self._lock = threading.Lock()
        self._reason: str | None = None

    def request_stop(self, reason: str) -> None:
        """Have the run end once its present round is done; the first reason stands."""
        with self._lock:
            self._reason = self._reason or printable(reason) or "stopped"

    @property
    def stop_reason(self) -> str | None:
        """Why the run is to end; None while it is to go on."""
        return self._reason
