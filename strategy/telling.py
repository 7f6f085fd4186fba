"""What is told of a run while it goes on: its events, and each client's trouble once."""

from collections.abc import Callable

from nufed.common.events import EventStream


class Telling:
    """Holds where events go, and what was complained of already, over a run.

    Attributes:
        events: takes what happens.
        check: called from time to time while clients are waited for; what it raises ends the wait and comes out.
        complaints: client id and trouble that were logged, so that they are logged once and not every round.
    """

    def __init__(self, events: EventStream | None = None, check: Callable[[], None] = lambda: None) -> None:
        """Tell `events`; None tells nobody."""
        self.events = EventStream() if events is None else events
        self.check = check
        self.complaints: set[tuple[str, str]] = set()
