"""A run's folder as a page shows it: of its events.jsonl, or of an older run's metrics.jsonl; also while they grow."""

import csv
import io
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from nufed.common.json_text import parse_object
from nufed.common.regular_file import open_regular
from nufed.deploy.dashboard.foreign_records import sound_record
from nufed.deploy.dashboard.hidden_paths import shareable_options
from nufed.deploy.dashboard.run_view import RunView
from nufed.deploy.runs.stored import GROUPS, METRICS, StoredRun, read_stored

EVENTS, CLIENTS = "events.jsonl", "clients.csv"
_LONGEST_LINE = 2**24
_AT_ONCE = 2**22


class FolderFollower:
    """Holds what was read of a run's folder so far, and the view that it makes up."""

    def __init__(self, folder: Path) -> None:
        """Follow a run's folder; nothing is read yet."""
        self.folder, self.view = folder, RunView(folder.name)
        self._target = RunView(folder.name)
        self._reading = threading.Lock()
        self._log = ""
        self._position = 0
        self._rest = b""
        self._stored: tuple[object, ...] = ()

    def refresh(self) -> RunView:
        """Read what has come since the last time, and return the view; one thread at a time reads.

        What is read for the first time, or anew, is shown once it is read: until then the view has what a run's small
        files say.
        """
        with self._reading:
            if not self._log:
                self._log = EVENTS if (self.folder / EVENTS).is_file() else METRICS
                self._introduce(read_stored(self.folder))
                self._begin()
            elif self._was_cut():
                self._begin()
            self._read_on()
            if (marks := self._marks()) != self._stored:
                self._stored = marks
                self._conclude(read_stored(self.folder))
            if self._target is not self.view:
                self.view.adopt(self._target)
                self._target = self.view
        return self.view

    def _begin(self) -> None:
        """Begin to read the log, with what is known already."""
        self._position, self._rest, self._stored = 0, b"", ()
        self._target = RunView(self.folder.name)
        self._know(self._target)

    def _know(self, view: RunView) -> None:
        for name in ("options", "engine", "num_rounds", "step", "measure", "begun"):
            setattr(view, name, getattr(view, name) or getattr(self.view, name))

    def _was_cut(self) -> bool:
        """Return whether the log is shorter than what was read of it: the run has gone on from an earlier round."""
        try:
            return (self.folder / self._log).stat().st_size < self._position
        except OSError:
            return False

    def _marks(self) -> tuple[object, ...]:
        """Return what changes when the run's state does."""
        from nufed.server.run_lock import writer_of

        marks: list[object] = [writer_of(self.folder)]
        for name in ("summary.json", CLIENTS, "config.json"):
            try:
                marks.append((self.folder / name).stat().st_mtime_ns)
            except OSError:
                marks.append(None)
        return tuple(marks)

    def _read_on(self) -> None:
        try:
            with open_regular(self.folder / self._log) as file:
                file.seek(self._position)
                while chunk := file.read(_AT_ONCE):
                    self._position += len(chunk)
                    *lines, self._rest = (self._rest + chunk).split(b"\n")
                    for line in lines:
                        self._take(line)
                    if len(self._rest) > _LONGEST_LINE:
                        self._rest = b""
        except OSError:
            return

    def _take(self, line: bytes) -> None:
        try:
            record = sound_record(parse_object(line))
        except ValueError:
            return
        if self._log == EVENTS:
            self._target.take(record)
            return
        self._target.trained(record)

    def _introduce(self, stored: StoredRun) -> None:
        """Take over what is known at once, for whoever looks before the log is read."""
        view = self.view
        with view.lock:
            view.version += 1
            view.options, view.engine = shareable_options(stored.options), stored.engine
            view.num_rounds, view.round = stored.num_rounds, stored.rounds
            view.step = stored.step or int(stored.options.get("evaluation.primary-step") or 0)
            view.measure, view.status = stored.measure, stored.status
            view.begun = _seconds(stored.started) if stored.started else None
            view.judged(stored.rounds, {name: stored.summary.get(name) for name in GROUPS})
            view.is_reading = True

    def _conclude(self, stored: StoredRun) -> None:
        """Take over what the folder's other files say: options, the end, and the clients' final curves."""
        view = self._target
        with view.lock:
            view.version += 1
            view.round = max(view.round, stored.rounds)
            self._know(view)
            if self._log == METRICS and stored.seconds is not None and view.begun is not None:
                view.ended = view.begun + stored.seconds
            if (stored.status == "running" and view.is_over) or view.status == "waiting":
                view.status, view.ended = "running", None
            if stored.summary and stored.status != "running" and self._log == METRICS:
                view.status = "running"
                view.take({"event": "interrupted", "round": stored.rounds, "time": view.ended, "status": stored.status,
                           "reason": stored.summary.get("reason"), "summary": stored.summary})  # fmt: skip
            elif stored.status in ("killed", "damaged"):
                view.status, view.reason = stored.status, stored.damage
                view.ended = view.ended or view.last_event
            for name, row in _final_scores(self.folder / CLIENTS, view.measure, view.step):
                client = view.client(name)
                client.group, client.num_examples = row["group"], row["num_support"]
                client.before, client.after = row["before"], row["after"]


def _final_scores(path: Path, measure: str, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each client's name with its group and scores before and after `step` steps, of clients.csv."""
    prefix = measure.replace("-", "_")
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            columns = [name for name in rows.fieldnames or () if name.rpartition("_")[0] == prefix]
            for row in rows:
                scores = [float(row[name]) if row[name] else None for name in columns] or [None]
                yield (
                    row["client_id"],
                    {
                        "group": row["group"],
                        "num_support": int(row["num_support"] or 0),
                        "before": scores[0],
                        "after": scores[min(step, len(scores) - 1)],
                    },
                )
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return


def _seconds(started: str) -> float | None:
    try:
        return datetime.fromisoformat(started).timestamp()
    except ValueError:
        return None
