"""Options of how a command is watched: metrics for Prometheus, tracking tools, and the format of what is logged."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args

import typer
from rich.console import Console

from nufed.common.errors import ConfigError, nearest_match_hint
from nufed.common.events import EventStream
from nufed.deploy.commands.option_groups import DeclaredOptions
from nufed.deploy.commands.terminal import JsonObserver, Observer, OutputOptions, TerminalObserver, stdout_console
from nufed.deploy.monitoring.logs import LogContext, LogFormat, LogLevel, LogSink, logging_as
from nufed.server.observer import ObserverSink

_PANEL = "Watching"

Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        help="record the run with tensorboard, mlflow[:URI] or wandb (repeatable)",
        metavar="TOOL",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class LogOptions(DeclaredOptions):
    """What a long-lived process tells of itself."""

    metrics: Annotated[
        str | None,
        typer.Option(
            help="serve metrics for Prometheus at /metrics of this port (on this machine alone, unless HOST says else)",
            metavar="[HOST:]PORT",
            rich_help_panel=_PANEL,
        ),
    ] = None
    log_format: Annotated[
        str, typer.Option(help="text, or json: one object a line", metavar="text|json", rich_help_panel=_PANEL)
    ] = "text"
    log_level: Annotated[
        str,
        typer.Option(
            help="debug (each client's replies as well), info, warning or error",
            metavar="LEVEL",
            rich_help_panel=_PANEL,
        ),
    ] = "info"

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "LogOptions":
        """Return the options.

        Raises:
            ConfigError: a name is unknown, or the address is none.
        """
        for flag, name, known in (
            ("--log-format", values["log_format"], get_args(LogFormat)),
            ("--log-level", values["log_level"], get_args(LogLevel)),
        ):
            if name not in known:
                raise ConfigError(f"Unknown {flag} {name!r}.{nearest_match_hint(name, known)}")
        if values["metrics"] is not None:
            from nufed.deploy.monitoring.metrics_server import parse_address

            parse_address(values["metrics"])
        return cls(**values)

    @property
    def is_json(self) -> bool:
        """Whether lines are JSON."""
        return self.log_format == "json"

    @property
    def is_terse(self) -> bool:
        """Whether nothing is shown that is as it should be."""
        return self.log_level in ("warning", "error")

    @contextmanager
    def logged(
        self, events: EventStream, *, client: str | None = None, level: str | None = None, to_stderr: bool = False
    ) -> Iterator[None]:
        """Log a stream's events, and what libraries log, as these options say, and serve its metrics, in the block.

        Args:
            events: the stream.
            client: of a client's process, its name.
            level: in place of `log_level`.
            to_stderr: whether events go to standard error too, because the output is something else.
        """
        log_format, least = cast("LogFormat", self.log_format), cast("LogLevel", level or self.log_level)
        with ExitStack() as open_:
            context = open_.enter_context(logging_as(log_format, least, LogContext(client=client)))
            sink = LogSink(log_format, least, context, sys.stderr if to_stderr else None)
            events.listen(context.take)
            events.attach(sink, patience=None)
            open_.callback(events.detach, sink)
            if self.metrics is not None:
                events.say(f"metrics at {open_.enter_context(_metrics(events, self.metrics))}")
            yield


@contextmanager
def _metrics(events: EventStream, address: str) -> Iterator[str]:
    from nufed.deploy.monitoring.metrics_server import served
    from nufed.deploy.monitoring.prometheus_metrics import kept_metrics

    with kept_metrics(events) as registry, served(registry, address) as url:
        yield url


@contextmanager
def watched(output: OutputOptions, log: LogOptions, track: list[str] | None) -> Iterator[tuple[EventStream, Observer]]:
    """Yield a run's stream of events, with everything attached that the options ask for, and what shows the run.

    Raises:
        ConfigError: a tracking tool is unknown or not installed.
        RunError: metrics cannot be served at that address.
    """
    specs = []
    if track:
        from nufed.deploy.monitoring.tracking import check_tracking

        specs = list(check_tracking(track))
    level: Literal["warning"] | None = "warning" if output.quiet and not log.is_terse else None
    with _observer(output, log) as observer, EventStream() as events, ExitStack() as open_:
        open_.enter_context(log.logged(events, level=level, to_stderr=output.json or output.quiet))
        events.attach(ObserverSink(observer), patience=None)
        if specs:
            from nufed.deploy.monitoring.tracking import tracked

            open_.enter_context(tracked(events, specs))
        yield events, observer


def _observer(output: OutputOptions, log: LogOptions) -> Observer:
    """Return what shows a run on standard output, where lines are text: JSON lines take its place."""
    if output.json:
        return JsonObserver(stdout_console())
    is_quiet = output.quiet or log.is_json or log.is_terse
    return TerminalObserver(Console(quiet=True) if is_quiet else stdout_console())
