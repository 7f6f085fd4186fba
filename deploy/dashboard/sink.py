"""The reader of a run's events that the page is made of."""

from nufed.common.events import Event
from nufed.deploy.dashboard.run_view import RunView


class DashboardSink:
    """Adds events to a view of the run that goes on in this process."""

    name = "the dashboard"
    kinds = None

    def __init__(self, view: RunView) -> None:
        """Add to `view`."""
        self._view = view

    def handle(self, event: Event) -> None:
        """Add an event."""
        self._view.take(event.to_json())

    def close(self) -> None:
        """Do nothing: the page shows how the run ended."""
