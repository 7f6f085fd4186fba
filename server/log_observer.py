"""Tells a run's progress where Flower's own strategies tell theirs: in the log that `flwr run --stream` shows."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nufed.common.config import RunConfig
from nufed.server.progress_lines import describe_run, mean_of, measures_of, round_line, said

_log = logging.getLogger("flwr")


class LogObserver:
    """Logs what runs and where, each round, and what came out; holds how many rounds there are."""

    def __init__(self) -> None:
        """Have heard of no run yet."""
        self._num_rounds = 0

    def say(self, line: str) -> None:
        """Log one line."""
        _log.info("%s", line)

    def on_start(self, config: RunConfig, folder: Path, *, first_round: int) -> None:
        """Log what runs and where it is written."""
        self._num_rounds = config.federation.num_rounds
        self.say(describe_run(config))
        self.say(f"folder {folder.absolute()}" + (f", going on at round {first_round}" if first_round > 1 else ""))

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Log the round, and which clients' replies were not used."""
        for client_id, reason in record["problems"].items():
            self.say(f"round {record['round']}: {client_id} left out: {reason}")
        self.say(round_line(record, self._num_rounds))

    def on_finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Log the final numbers of each group of clients, and where everything is."""
        for name in ("participating", "new"):
            if not (group := summary.get(name)):
                continue
            last = len(mean_of(group)) - 1
            for measure in measures_of(group):
                change = f"{said(group, 0, measure)} → {said(group, last, measure)}"
                self.say(f"{group['num_clients']} {name} clients: {measure} {change} after fine-tuning")
        self.say(f"{summary['status']}: {summary['rounds']} rounds, {summary['seconds']:.1f} s, {folder.absolute()}")
