"""What a run in a notebook or a script shows while it lasts: one bar, gone when the run is over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.text import Text

from nufed.common.config import RunConfig
from nufed.deploy.round_bar import round_bar
from nufed.server.progress_lines import last_evaluation


class ProgressBar:
    """Shows a run's rounds on standard error or in the notebook's cell; holds the bar between rounds."""

    def __init__(self, *, shown: bool = True) -> None:
        """Show nothing if `shown` is false, or where nobody looks: standard error is a file or a pipe."""
        self._console = Console(stderr=True, highlight=False, quiet=not shown)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last = ""

    def __enter__(self) -> Self:
        """Return the bar itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away, however the run ended."""
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        self._console.print(Text(line), soft_wrap=True)

    def on_start(self, config: RunConfig, folder: Path, *, first_round: int) -> None:  # noqa: ARG002 - the observers'
        """Begin the bar."""
        if not self._console.is_terminal and not self._console.is_jupyter:
            return
        self._bar = round_bar(self._console)
        total = config.federation.num_rounds
        self._task = self._bar.add_task("rounds", total=total, completed=first_round - 1, last="")
        self._bar.start()

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Move the bar, and say which replies were not used and why."""
        for client_id, reason in record["problems"].items():
            self.say(f"round {record['round']}: {client_id} left out: {reason}")
        if self._bar:
            self._last = last_evaluation(record) or self._last
            self._bar.update(self._task, completed=record["round"], last=self._last)

    def on_finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Leave the numbers to whoever asked for the run."""
