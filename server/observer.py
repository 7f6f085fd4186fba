"""Who is told how a run goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nufed.common.config import RunConfig


class RunObserver(Protocol):
    """Is told of a run's progress, and shows it."""

    def say(self, line: str) -> None:
        """Show one line about the run."""

    def on_start(self, config: RunConfig, folder: Path, *, first_round: int) -> None:
        """Take note that all clients are there, and where the run is written."""

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Take note of a finished round; `record` is its line of metrics.jsonl."""

    def on_finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Take note that the run is over; `summary` is the content of summary.json."""


class SilentObserver:
    """Shows nothing: the observer of a run that nobody watches."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def on_start(self, config: RunConfig, folder: Path, *, first_round: int) -> None:
        """Do nothing."""

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def on_finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Do nothing."""
