"""Who is told how a run goes on, and how a run's events reach them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nufed.common.config import RunConfig
from nufed.common.events import Ended, Event, Note, RoundClosed, Started


class RunObserver(Protocol):
    """Is told of a run's progress, and shows it."""

    def say(self, line: str) -> None:
        """Show one line about the run."""

    def on_start(self, config: RunConfig, folder: Path, *, first_round: int) -> None:
        """Take note that all clients are there, and where the run is written."""

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Take note of a finished round; `record` is its line of metrics.jsonl, without `clients`."""

    def on_finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Take note that the run is over; `summary` is the content of summary.json."""


class ObserverSink:
    """Shows a run's events through an observer: a sink of what people read."""

    kinds = (Started, RoundClosed, Ended, Note)

    def __init__(self, observer: RunObserver, name: str = "the terminal") -> None:
        """Tell `observer`."""
        self.name = name
        self._observer = observer

    def handle(self, event: Event) -> None:
        """Tell the observer what it has a method for."""
        if isinstance(event, RoundClosed):
            self._observer.on_round(event.__dict__)
        elif isinstance(event, Note):
            self._observer.say(event.text)
        elif isinstance(event, Started):
            config = RunConfig.parse(event.options)
            self._observer.on_start(config, Path(event.folder), first_round=event.first_round)
        elif isinstance(event, Ended) and event.summary:
            self._observer.on_finish(event.summary, Path(event.folder))

    def close(self) -> None:
        """Do nothing: whoever made the observer ends it."""
