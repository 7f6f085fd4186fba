"""What a command logs: lines of text, or one JSON object a line with time, run, round, client and event.

Events go to standard output, as the lines of text do; warnings and errors go to standard error. In either format
control characters of whatever origin are escape sequences, so that nothing that was sent acts on a terminal.
"""

import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import IO, Any, Literal

from nufed.common.events import (
    Asked,
    CellFinished,
    CheckpointSaved,
    Ended,
    Evaluated,
    Event,
    Interrupted,
    Joined,
    Left,
    Note,
    Phase,
    Rejected,
    Replied,
    RoundClosed,
    SinkDropped,
    Started,
)
from nufed.common.json_text import json_ready
from nufed.common.untrusted import escaped, printable

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_QUIETER = ("flwr", "grpc")
_LONGEST_TRACEBACK = (2_000, 6_000)
_LONGEST_LINE = 300

_log = logging.getLogger("nufed.threads")


@dataclass
class LogContext:
    """What every line of a process carries; changes as the run goes on.

    Attributes:
        run: name of the run's folder; empty before there is one.
        round: the last round that was begun.
        client: of a client's own process, its name; else None.
    """

    run: str = ""
    round: int = 0
    client: str | None = None

    def take(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, Started):
            self.run = event.run
        self.round = getattr(event, "round", self.round)


class LogSink:
    """A sink that writes events as lines; holds what lines carry about events that do not say it themselves."""

    name = "the log"
    kinds = None

    def __init__(
        self, log_format: LogFormat, level: LogLevel, context: LogContext, file: IO[str] | None = None
    ) -> None:
        """Write to `file`, or to standard output; as text, only events of level `debug`: the others are shown else."""
        self._is_json, self._level = log_format == "json", _LEVELS[level]
        self._context, self._file = LogContext(client=context.client), file

    def handle(self, event: Event) -> None:
        """Write a line, if the event is of this level or above it."""
        self._context.take(event)
        level = event_level(event)
        if _LEVELS[level] < self._level or not (self._is_json or level == "debug"):
            return
        line = json_line(self._values(event, level)) if self._is_json else describe_event(event)
        print(line, file=self._file or sys.stdout, flush=True)

    def close(self) -> None:
        """Do nothing: standard output stays open."""

    def _values(self, event: Event, level: LogLevel) -> dict[str, Any]:
        told = {"client": self._context.client, "round": self._context.round, **event.to_json()}
        if isinstance(event, Evaluated):
            told["groups"] = {
                group: {metric: [curve[0], event.after(curve)] for metric, curve in curves.items()}
                for group, curves in event.groups.items()
            }
        plain = {
            name: value
            for name, value in told.items()
            if name != "text" and (name == "groups" or not isinstance(value, Mapping | list | tuple))
        }
        return {
            **_head(event.time, level, event.kind),
            **plain,
            "time": _iso(event.time),
            "run": event.run or self._context.run,
            "message": describe_event(event),
        }


def event_level(event: Event) -> LogLevel:
    """Return how much an event matters."""
    if isinstance(event, Asked | Replied | Phase | CheckpointSaved):
        return "debug"
    if isinstance(event, Rejected) and event.outcome == "dropped":  # as usual where rounds ask more than they need
        return "debug"
    if isinstance(event, Note):
        return event.level
    if isinstance(event, Ended):
        return {"failed": "error", "interrupted": "warning"}.get(event.kind, "info")  # type: ignore[return-value]
    return "warning" if isinstance(event, Rejected | SinkDropped) else "info"


def describe_event(event: Event) -> str:  # noqa: C901 - one line for each event
    """Return an event in one line of words."""
    from nufed.server.progress_lines import round_line

    match event:
        case Started():
            return f"{event.run} begins at round {event.first_round} of {event.num_rounds}"
        case Joined():
            return f"{event.client} is there"
        case Left():
            return f"{event.client} has left" + (f": {event.reason}" if event.reason else "")
        case Phase():
            how = "begins" if event.seconds is None else f"is over after {event.seconds:.2f} s"
            return f"{event.phase} of round {event.round} {how}"
        case Asked():
            return f"{len(event.clients)} clients are asked for {event.phase} of round {event.round}"
        case Replied():
            return f"{event.client} has answered {event.phase} of round {event.round} after {event.seconds:.2f} s"
        case Rejected():
            return f"round {event.round}: {event.client} left out ({event.outcome}): {event.reason}"
        case RoundClosed():
            return round_line(event.__dict__, event.num_rounds)
        case Evaluated():
            return f"the model of round {event.round} is judged by {sum(event.num_clients.values())} clients"
        case CheckpointSaved():
            return f"round {event.round} is saved"
        case CellFinished():
            return f"{event.done}/{event.total} {event.cell}: {event.ending}"
        case SinkDropped():
            return f"{event.sink} has missed {event.dropped} events"
        case Ended():
            stopped = "stopped" if isinstance(event, Interrupted) else event.status
            return f"{stopped} after round {event.round}" + (f": {event.reason}" if event.reason else "")
        case Note():
            return escaped(event.text)
    return event.kind


def json_line(values: Mapping[str, Any]) -> str:
    """Return values as one line of ASCII JSON."""
    return json.dumps(json_ready(values), allow_nan=False)


def error_line(message: str, exit_code: int, error: BaseException | None = None) -> str:
    """Return the JSON line that a command ends with by an error; of one that nobody foresaw, with its traceback."""
    values = {**_head(datetime.now(UTC).timestamp(), "error", "error"), "message": printable(message, (1000, 1000))}
    values |= {"run": "", "round": 0, "client": None, "exit_code": exit_code}
    if error is not None:
        values["traceback"] = _traceback(error)
    return json_line(values)


def wants_json(typed: Sequence[str]) -> bool:
    """Return whether a command line asks for JSON lines; errors of the command line itself are then JSON as well."""
    return "--log-format=json" in typed or ("--log-format", "json") in pairwise(typed)


@contextmanager
def logging_as(log_format: LogFormat, level: LogLevel, context: LogContext | None = None) -> Iterator[LogContext]:
    """Write what libraries and we log in a format, from a level on, inside the block; yields what lines carry."""
    context = context or LogContext()
    handler = logging.StreamHandler(_StandardError())
    handler.setFormatter(_JsonFormatter(context) if log_format == "json" else _TextFormatter())
    root, ours = logging.getLogger(), logging.getLogger("nufed")
    replaced: list[tuple[logging.Logger, list[logging.Handler], bool, int]] = []
    for name in _QUIETER:
        logger = logging.getLogger(name)
        replaced.append((logger, logger.handlers[:], logger.propagate, logger.level))
        logger.handlers, logger.propagate = [], True
        if level != "debug":
            logger.setLevel(max(logging.WARNING, _LEVELS[level]))
    before = ours.level
    ours.setLevel(_LEVELS[level])
    root.addHandler(handler)
    logging.captureWarnings(log_format == "json")
    hook = threading.excepthook
    if log_format == "json":
        threading.excepthook = _log_of_thread
    try:
        yield context
    finally:
        threading.excepthook = hook
        logging.captureWarnings(False)
        root.removeHandler(handler)
        ours.setLevel(before)
        for logger, handlers, propagates, its_level in replaced:
            logger.handlers, logger.propagate = handlers, propagates
            logger.setLevel(its_level)


def _log_of_thread(raised: threading.ExceptHookArgs) -> None:
    """Log what a thread has raised, as one line like everything else."""
    name = raised.thread.name if raised.thread else "a thread"
    _log.error("%s has failed", name, exc_info=(raised.exc_type, raised.exc_value, raised.exc_traceback))  # type: ignore[arg-type]


class _StandardError:
    """Standard error as it is when something is written."""

    def write(self, text: str) -> None:
        """Write text."""
        if sys.stderr is not None:
            sys.stderr.write(text)

    def flush(self) -> None:
        """Write what waits."""
        if sys.stderr is not None:
            sys.stderr.flush()


class _TextFormatter(logging.Formatter):
    """Makes a record text without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's message, and its traceback if it has one."""
        return escaped(super().format(record))


class _JsonFormatter(logging.Formatter):
    """Makes a record a JSON line; holds what lines carry."""

    def __init__(self, context: LogContext) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        level = record.levelname.lower()
        values = {**_head(record.created, level, "log"), "message": printable(record.getMessage(), (1000, 1000))}
        values |= {"run": self._context.run, "round": self._context.round, "client": self._context.client}
        values["logger"] = record.name
        if record.exc_info and record.exc_info[1] is not None:
            values["traceback"] = _traceback(record.exc_info[1])
        return json_line(values)


def _head(time: float, level: str, event: str) -> dict[str, Any]:
    return {"time": _iso(time), "level": level, "event": event}


def _iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).splitlines()
    text = "\n".join(f"{line[:_LONGEST_LINE]}…" if len(line) > _LONGEST_LINE else line for line in lines)
    head, tail = _LONGEST_TRACEBACK
    return text if len(text) <= head + tail else f"{text[:head]}…{text[-tail:]}"
