"""What a run shows while it runs and when it is over: a live bar on a terminal, plain lines in a pipe."""

import inspect
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.text import Text

from nufed.common.config import RunConfig
from nufed.common.errors import LISTED, ConfigError
from nufed.common.json_text import json_ready
from nufed.common.untrusted import escaped
from nufed.deploy.commands.heartbeat import Heartbeat
from nufed.deploy.commands.option_groups import option
from nufed.deploy.commands.result_tables import (
    clients_table,
    few_line,
    headline,
    record_line,
    sample_line,
    steps_shown,
    summary_table,
    turned_summary,
)
from nufed.deploy.commands.shots_table import shots_table
from nufed.deploy.commands.tables import PIPE_WIDTH, fits, print_table
from nufed.deploy.round_bar import round_bar
from nufed.server.observer import RunObserver
from nufed.server.progress_lines import describe_run, last_evaluation, number, privacy_line, round_line

_SECONDS_BETWEEN_LINES = 5.0


class Observer(RunObserver, Protocol):
    """A RunObserver to be entered, so that it leaves the terminal in order however the run ends."""

    def __enter__(self) -> Self:
        """Return the observer."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal in order."""

    def waits_for(self, what: str) -> None:
        """Take note that nothing is done for now but to wait for `what`."""


@dataclass(frozen=True)
class OutputOptions:
    """Where a run is written and what it shows.

    Attributes:
        out: folder that the run's folder is made in; None leaves it to the environment (`NUFED_OUT`).
        quiet: show nothing but errors.
        json: print the summary as JSON and nothing else.
    """

    out: Path | None = None
    quiet: bool = False
    json: bool = False

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return --out, --quiet and --json."""

        def declare(flag: str, text: str, **rest: Any) -> Any:
            return typer.Option(flag, help=text, rich_help_panel="Output", **rest)

        out = declare("--out", "folder that the run's folder is made in (default: runs)", metavar="DIR")
        return [
            option("out", Path | None, None, out),
            option("quiet", bool, False, declare("--quiet", "show nothing but errors")),
            option("json", bool, False, declare("--json", "print the summary as JSON and nothing else")),
        ]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "OutputOptions":
        """Return the output's options.

        Raises:
            ConfigError: --quiet contradicts --json.
        """
        if values["quiet"] and values["json"]:
            raise ConfigError("--quiet contradicts --json: one prints nothing, the other the summary. Choose one.")
        return cls(**values)

    def observer(self) -> Observer:
        """Return what shows a run."""
        if self.json:
            return JsonObserver(stdout_console())
        return TerminalObserver(Console(quiet=True) if self.quiet else stdout_console())


def stdout_console() -> Console:
    """Return a console on stdout; in a pipe it is wide, unless COLUMNS says how wide whoever reads it is."""
    console = Console(highlight=False)
    if console.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        return console
    return Console(highlight=False, width=PIPE_WIDTH)


class TerminalObserver:
    """Shows a run's progress; holds the bar between rounds."""

    def __init__(self, console: Console) -> None:
        """Show on `console`: a live bar if it is a terminal, else lines; see `_is_due`."""
        self._console = console
        self._heartbeat = Heartbeat(self.say, "getting ready")
        self._said_at = 0.0
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._last = ""
        self._num_rounds = 0

    def __enter__(self) -> "TerminalObserver":
        """Return the observer."""
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal in order, also when the run ended by an error."""
        self._heartbeat.__exit__()
        self._stop()

    def on_start(self, config: RunConfig, folder: Path, *, first_round: int) -> None:
        """Say what runs and where, and show the bar."""
        self._num_rounds = config.federation.num_rounds
        self.say(describe_run(config))
        self.say(f"folder {folder}" + (f", going on at round {first_round}" if first_round > 1 else ""))
        if not self._console.is_terminal:
            self._heartbeat.now(f"round {first_round}/{self._num_rounds}" if self._num_rounds else "evaluation")
            return
        self._heartbeat.now("")
        self._progress = round_bar(self._console)
        self._task = self._progress.add_task("rounds", total=self._num_rounds, completed=first_round - 1, last="")
        self._progress.start()

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Move the bar; name the clients whose reply was not used."""
        for client_id, reason in record["problems"].items():
            self.say(f"round {record['round']}: {client_id} left out: {reason}")
        last = last_evaluation(record)
        if self._progress:
            self._last = last or self._last
            self._progress.update(self._task, completed=record["round"], last=self._last)
            return
        done, following = record["round"], record["round"] + 1
        if last or self._is_due(done):
            self.say(round_line(record, self._num_rounds))
            self._said_at = time.monotonic()
        going_on = f"round {following}/{self._num_rounds}" if following <= self._num_rounds else "final evaluation"
        self._heartbeat.now(going_on)

    def _is_due(self, done: int) -> bool:
        """Return whether a round without evaluation has a line: the first one, the last one, and one every 5 s."""
        return done in (1, self._num_rounds) or time.monotonic() - self._said_at >= _SECONDS_BETWEEN_LINES

    def on_finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Show the final numbers and where they are."""
        self._stop()
        self._heartbeat.now("")
        if (table := summary_table(summary)) is not None:
            self.say(headline(summary))
            if fits(table, self._console):
                self._console.print(table)
            else:
                print_table(self._console, *turned_summary(summary), right=2)
            if each := clients_table(summary, folder):
                print_table(self._console, *each, right=2)
        if (few := shots_table(summary, steps_shown(summary), number)) is not None:
            self.say("With few support examples, of each class where there are classes:")
            self._console.print(few)
        for line in closing_lines(summary, folder):
            self.say(line)

    def waits_for(self, what: str) -> None:
        """Say from time to time that the run waits for `what`, until it starts."""
        self._heartbeat.now(f"waiting for {what}")

    def say(self, line: str) -> None:
        """Show one line, above the bar if there is one."""
        self._console.print(Text(escaped(line)), soft_wrap=True)

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


class JsonObserver:
    """Prints the summary with the run's folder as one JSON object, and nothing else."""

    def __init__(self, console: Console) -> None:
        """Print on `console`."""
        self._console = console

    def __enter__(self) -> "JsonObserver":
        """Return the observer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: there is nothing to put in order."""

    def waits_for(self, what: str) -> None:
        """Say nothing."""

    def say(self, line: str) -> None:
        """Say nothing."""

    def on_start(self, config: RunConfig, folder: Path, *, first_round: int) -> None:
        """Say nothing."""

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Say nothing."""

    def on_finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Print the JSON object."""
        text = json.dumps(json_ready({"folder": folder, **summary}), indent=2, allow_nan=False, ensure_ascii=False)
        self._console.print(Text(text), soft_wrap=True)


def closing_lines(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the last lines of a run's output: status, target, replies that were not used, and the folder."""
    lines = [*_ending(summary, folder)]
    lines += sample_line(summary) + few_line(summary) + record_line(summary)
    measure = summary.get("primary_metric") or "accuracy"
    if target := summary.get("target_metric") or (summary.get("target_accuracy") if measure == "accuracy" else None):
        reached = summary["rounds_to_target"]
        when = f"after round {reached}" if reached is not None else f"in none of {summary['rounds']} rounds"
        lines.append(f"{measure} {number(target, measure)} reached {when}")
    if problems := {name: count for name, count in summary.get("problems", {}).items() if count}:
        lines.append("replies not used: " + ", ".join(f"{count} {name}" for name, count in problems.items()))
    if problems.get("rejected"):
        lines.append(
            "If models grew beyond bounds: lower --local-lr or --inner-lr, or set method.max-grad-norm, e.g. to 3."
        )
    outside = summary.get("outside_epsilon") or {}
    if "evaluation" in outside.get("withheld", ()):
        lines.append(
            "Evaluations are withheld: each client learns its own at home, and --publish evaluation shows means."
        )
    if published := outside.get("published"):
        lines.append(f"Published although ε does not cover it: {', '.join(published)}")
    return [*lines, f"{summary['seconds']:.1f} s, {folder}"]


def _ending(summary: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield how a run ended, where that is not as it should be; the reason of an error is told by the error."""
    rounds, idle = summary["rounds"], summary.get("rounds_without_reply", 0)
    if summary["status"] == "interrupted":
        yield f"Interrupted after round {rounds}. {_going_on(folder)}"
    if summary["status"] == "budget-spent":
        yield f"Stopped after round {rounds}, before ε passes its budget."
    if spent := privacy_line(summary):
        yield spent
    if summary["status"] == "nothing-trained":
        yield f"Nothing was trained: no reply could be used in any of {rounds} rounds."
    elif idle:
        what = "added noise alone" if summary.get("privacy") else "left the model as it was"
        yield f"In {idle} of {rounds} rounds no reply could be used; they {what}."
    if summary["status"] == "diverged":
        yield f"Diverged after round {rounds}."
    if any(any((summary.get(group) or {}).get("num_diverged", ())) for group in ("participating", "new")):
        yield "Means are over the clients that have not diverged."
    evaluation = summary.get("final_evaluation") or {}
    absent, never_seen = evaluation.get("absent") or {}, evaluation.get("never_seen") or 0
    if summary["status"] == "complete" and (absent or never_seen):
        names = [f"{client_id} ({reason})" for client_id, reason in list(absent.items())[:LISTED]]
        names += [f"{len(absent) - LISTED} more"] if len(absent) > LISTED else []
        names += [f"{never_seen} that never came"] if never_seen else []
        yield f"Not in the final evaluation: {', '.join(names)}. {_going_on(folder, 'ask again')}"


def _going_on(folder: Path, what: str = "go on") -> str:
    """Return how a run can be resumed; its options are in its folder, and what else was typed has to be typed again."""
    return f"To {what}, type --resume {folder} in place of --out and the run's options."
