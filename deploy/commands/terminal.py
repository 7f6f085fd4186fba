"""What a run shows while it runs and when it is over: a live bar on a terminal, plain lines in a pipe."""

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nufed.common.config import RunConfig
from nufed.common.errors import LISTED, ConfigError
from nufed.deploy.commands.option_groups import option
from nufed.deploy.commands.tables import PIPE_WIDTH
from nufed.server.observer import RunObserver


class Observer(RunObserver, Protocol):
    """A RunObserver to be entered, so that it leaves the terminal in order however the run ends."""

    def __enter__(self) -> Self:
        """Return the observer."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal in order."""


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
        """Show on `console`: a live bar if it is a terminal, else a line per evaluation."""
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._last = ""
        self._num_rounds = 0

    def __enter__(self) -> "TerminalObserver":
        """Return the observer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal in order, also when the run ended by an error."""
        self._stop()

    def on_start(self, config: RunConfig, folder: Path, *, first_round: int) -> None:
        """Say what runs and where, and show the bar."""
        self._num_rounds = config.federation.num_rounds
        self.say(describe_run(config))
        self.say(f"folder {folder}" + (f", going on at round {first_round}" if first_round > 1 else ""))
        if not self._console.is_terminal:
            return
        columns = (
            TextColumn("round {task.completed}/{task.total}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[last]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, transient=True)
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
        elif last:
            self.say(f"round {record['round']}/{self._num_rounds}  {last}  {record['seconds']:.1f} s")

    def on_finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Show the final numbers and where they are."""
        self._stop()
        if (table := summary_table(summary)) is not None:
            self.say("After s fine-tuning steps (worst: mean of the worst tenth of the clients):")
            self._console.print(table)
        for line in closing_lines(summary, folder):
            self.say(line)

    def say(self, line: str) -> None:
        """Show one line, above the bar if there is one."""
        self._console.print(Text(line), soft_wrap=True)

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

    def say(self, line: str) -> None:
        """Say nothing."""

    def on_start(self, config: RunConfig, folder: Path, *, first_round: int) -> None:
        """Say nothing."""

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Say nothing."""

    def on_finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Print the JSON object."""
        from nufed.common.durable_file import json_ready

        text = json.dumps(json_ready({"folder": folder, **summary}), indent=2, allow_nan=False, ensure_ascii=False)
        self._console.print(Text(text), soft_wrap=True)


def describe_run(config: RunConfig) -> str:
    """Return one line that says what is run."""
    data, method, federation = config.data, config.method, config.federation
    new = f" + {data.num_new_clients} new" if data.num_new_clients else ""
    return (
        f"{data.source} ({data.partition}), {data.num_clients}{new} clients, {config.model.name}: "
        f"ν = {method.num_inner_steps}, {method.estimator}, α = {method.inner_lr:g}, β = {method.local_lr:g}, "
        f"τ = {method.num_local_steps}, r = {federation.participation_fraction:g}, seed {config.seed}"
    )


def last_evaluation(record: Mapping[str, Any]) -> str:
    """Return `accuracy 41.2 % → 87.3 %` (before and after adaptation) of a round that was evaluated, else nothing."""
    evaluation = record.get("evaluation")
    participating = evaluation and evaluation.get("participating")
    if not participating:
        return ""
    curve, name = participating["accuracy"], "accuracy"
    if curve is None:
        curve, name = participating["loss"], "loss"
    return f"{name} {_number(curve[0], name)} → {_number(curve[-1], name)}"


def summary_table(summary: Mapping[str, Any]) -> Table | None:
    """Return the final numbers: one row per group, accuracy (or loss) after 0, 1, ν, s* and S steps; None without any.

    Columns `worst` are the mean over the worst tenth of the clients, before and after S steps.
    """
    groups = {name: summary[name] for name in ("participating", "new") if summary.get(name)}
    if not groups:
        return None
    measure = next(iter(groups.values()))["measure"]
    last = len(next(iter(groups.values()))[measure]) - 1
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(f"test {measure}\nof clients")
    table.add_column("n", justify="right")
    steps = sorted({0, min(1, last), min(summary["num_inner_steps"], last), summary["primary_step"], last})
    for step in steps:
        table.add_column(f"s = {step}\n{_step_names(step, summary, last)}", justify="right", no_wrap=True)
    for step in (0, last):
        table.add_column(f"s = {step}\nworst", justify="right", no_wrap=True)
    for name, group in groups.items():
        means = [_number(group[measure][step], measure) for step in steps]
        diverged = [group.get("num_diverged", [0] * (last + 1))[step] for step in steps]
        worst = [_number(group["worst_decile"][step], measure) for step in (0, last)]
        table.add_row(name, str(group["num_clients"]), *means, *worst)
        for key, curve in (group.get("metrics") or {}).items():
            if key.startswith("test-"):
                further = key.removeprefix("test-")
                table.add_row(f"  {further}", "", *(_number(curve[step], further) for step in steps))
        if any(diverged):
            table.add_row("  of them diverged", "", *map(str, diverged))
    return table


def closing_lines(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the last lines of a run's output: status, target, replies that were not used, and the folder."""
    lines = [*_ending(summary, folder)]
    if summary.get("target_accuracy"):
        reached = summary["rounds_to_target"]
        when = f"after round {reached}" if reached is not None else f"in none of {summary['rounds']} rounds"
        lines.append(f"accuracy {_number(summary['target_accuracy'], 'accuracy')} reached {when}")
    if problems := {name: count for name, count in summary.get("problems", {}).items() if count}:
        lines.append("replies not used: " + ", ".join(f"{count} {name}" for name, count in problems.items()))
    if problems.get("rejected"):
        lines.append(
            "If models grew beyond bounds: lower --local-lr or --inner-lr, or set method.max-grad-norm, e.g. to 3."
        )
    return [*lines, f"{summary['seconds']:.1f} s, {folder}"]


def _ending(summary: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield how a run ended, where that is not as it should be; the reason of an error is told by the error."""
    rounds, idle = summary["rounds"], summary.get("rounds_without_reply", 0)
    if summary["status"] == "interrupted":
        yield f"Interrupted after round {rounds}. To go on, give the same command --resume {folder}"
    if summary["status"] == "nothing-trained":
        yield f"Nothing was trained: no reply could be used in any of {rounds} rounds."
    elif idle:
        yield f"In {idle} of {rounds} rounds no reply could be used; they left the model as it was."
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
        yield f"Not in the final evaluation: {', '.join(names)}. To ask again, give the same command --resume {folder}"


def _step_names(step: int, summary: Mapping[str, Any], last: int) -> str:
    if step == 0:
        return "before"
    named = {"ν": summary["num_inner_steps"], "s*": summary["primary_step"], "S": last}
    return " = ".join(name for name, value in named.items() if value == step)


def _number(value: float | None, measure: str) -> str:
    if value is None or value != value:
        return "diverged"
    if measure == "loss":
        return f"{value:.4g}"
    from nufed.common.metrics import ACCURACY, further_metrics  # loads PyTorch, which is loaded once there are numbers

    known = {"accuracy": ACCURACY, **further_metrics()}.get(measure)
    return f"{100 * value:.1f} %" if known and known.is_share else f"{value:.4g}"
