"""What the page shows of one run, built up from the run's events one by one.

It is small whatever the run's size: one row for each client and each round, the newest lines of the log, no messages.
"""

import re
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nufed.common.json_text import json_ready
from nufed.common.privacy.publishing import withheld_by
from nufed.common.untrusted import printable
from nufed.deploy.dashboard.client_rows import ClientRow, Wanted, page_of
from nufed.deploy.dashboard.decimation import kept_indices
from nufed.deploy.dashboard.foreign_records import is_number, sound_curve, sound_scores
from nufed.deploy.dashboard.hidden_paths import shareable_options, without_folders
from nufed.deploy.runs.stored import primary_curve
from nufed.server.progress_lines import secure_line

if TYPE_CHECKING:
    from nufed.common.events import Connection

MOST_CLIENTS, MOST_LINES, RECENT_LINES = 50_000, 2000, 200
_RECENT_ROUNDS = 10
_COUNTS = ("rejected", "failed", "missing", "dropped")
_POINT = ("round", "loss", "seconds", "bytes_up", "bytes_down", "sampled", "replied", *_COUNTS)
_COSTS = ("gradient_evaluations", "hvps", "bytes_up", "bytes_down", *_COUNTS, "seconds", "simulated_seconds")
_TOLD_ALREADY = re.compile(r" (joined|left) \(\d+ connected\)$")
"""Of lines that tell what a record of its own tells, too."""
_SPREADS = ("worst_decile", "spread", "num_diverged")
_ENDS = ("finished", "failed", "interrupted")


class RunView:
    """Holds what the events of a run amount to; one thread adds events, others read."""

    def __init__(self, name: str = "") -> None:
        """Know nothing of a run but its name."""
        self.lock = threading.RLock()
        self.epoch = 0
        self.is_reading = False
        self.connections: Callable[[], Sequence[Connection]] = tuple
        self.name = name
        self.version = self.clients_version = 0
        self.status, self.reason = "waiting", ""
        self.options: dict[str, Any] = {}
        self.engine, self.measure, self.phase = "", "", ""
        self.step = self.round = self.num_rounds = self.num_parameters = 0
        self.begun: float | None = None
        self.ended: float | None = None
        self.last_event: float | None = None
        self.points: list[dict[str, Any]] = []
        self.evaluations: dict[int, dict[str, Any]] = {}
        self.curves: dict[str, Any] = {}
        self.clients: dict[str, ClientRow] = {}
        self.lines: deque[dict[str, Any]] = deque(maxlen=MOST_LINES)
        self.num_lines = 0
        self.problems: dict[str, str] = {}

    def adopt(self, other: "RunView") -> None:
        """Show what another view has gathered, all at once: pages that look on are told to begin anew."""
        with self.lock:
            own = {name: self.__dict__[name] for name in ("lock", "name", "connections")}
            self.__dict__.update({**other.__dict__, **own, "epoch": self.epoch + 1, "version": self.version + 1})

    def take(self, event: Mapping[str, Any]) -> None:
        """Add one event, as `Event.to_json` gives it; one that is unknown or lacks something changes nothing."""
        kind = str(event.get("event"))
        handler = _HANDLERS.get(kind)
        if handler is None:
            return
        with self.lock:
            try:
                handler(self, event)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
                return
            self.version += 1
            self.last_event = event.get("time") or self.last_event

    def trained(self, record: Mapping[str, Any]) -> None:
        """Add a line of metrics.jsonl: a round, with what its clients say; a line that is no round changes nothing."""
        with self.lock:
            for name, metrics in _mapping(record.get("clients")).items():
                row, known = self.clients.get(name) or self.client(name), sound_scores(metrics)
                row.rounds += 1
                row.train_seconds, row.loss, row.failed_in_a_row = known.get("seconds"), known.get("loss"), 0
            self.clients_version += 1
            for name, reason in _mapping(record.get("problems")).items():
                self.take(
                    {"event": "rejected", "client": name, "phase": "training", "round": record.get("round"),
                     "outcome": "not used", "reason": reason}
                )  # fmt: skip
            self.take({**record, "event": "round"})

    def client(self, name: str, at: float | None = None) -> ClientRow:
        """Return a client's row, made if need be; beyond `MOST_CLIENTS` one that nobody sees."""
        row = self.clients.get(name)
        if row is None:
            row = ClientRow(printable(name))
            if len(self.clients) < MOST_CLIENTS:
                self.clients[name] = row
        row.last_seen = at or row.last_seen
        self.clients_version += 1
        return row

    def say(self, kind: str, at: float | None, text: str, client: str = "", level: str = "info") -> None:
        """Add a line to the log."""
        self.num_lines += 1
        shown = without_folders(printable(text))
        self.lines.append(
            {"number": self.num_lines, "kind": kind, "time": at, "text": shown, "client": printable(client),
             "level": level}
        )  # fmt: skip

    def observed(self) -> None:
        """Take over what the server knows of its connections now."""
        for each in self.connections():
            with self.lock:
                row = self.client(each.client, each.last_seen)
                row.is_online, row.connected_since = each.is_online, each.connected_since
                row.is_working = row.is_working and each.is_online
                if each.bytes_up or each.bytes_down:
                    row.bytes_up, row.bytes_down = (
                        max(row.bytes_up, each.bytes_up),
                        max(row.bytes_down, each.bytes_down),
                    )

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.status not in ("waiting", "running")

    def seconds_left(self) -> float | None:
        """Return about how long the rounds that are left take, by the last ones; None without any yet."""
        recent = [point["seconds"] for point in self.points[-_RECENT_ROUNDS:]]
        if self.is_over or not recent:
            return None
        return (self.num_rounds - self.round) * statistics.fmean(recent)

    def head(self) -> dict[str, Any]:
        """Return where the run stands: all that changes with every event, and is small."""
        from nufed.deploy.dashboard.attention import attention

        with self.lock:
            states = [row.state for row in self.clients.values()]
            last = self.evaluations[max(self.evaluations)] if self.evaluations else {}
            withheld = withheld_by(self.options)
            costs = {name: sum(point.get(name) or 0 for point in self.points) for name in _COSTS}
            if "participants" in withheld:
                costs = {**dict.fromkeys(_COSTS), "seconds": costs["seconds"]}
            elapsed = (self.ended or time.time()) - self.begun if self.begun else None
            return {
                "name": self.name,
                "status": self.status,
                "reason": self.reason,
                "phase": self.phase,
                "round": self.round,
                "num_rounds": self.num_rounds,
                "elapsed": elapsed,
                "left": self.seconds_left(),
                "measure": self.measure,
                "step": self.step,
                "latest": last,
                "clients": {state: states.count(state) for state in ("working", "idle", "left")},
                "costs": costs,
                "withheld": withheld,
                "attention": attention(self, time.time()),
                "clients_version": self.clients_version,
                "epoch": self.epoch,
                "is_reading": self.is_reading,
                "num_lines": self.num_lines,
            }

    def snapshot(self) -> dict[str, Any]:
        """Return everything that a page begins with, long series with fewer points."""
        with self.lock:
            points = [self.points[index] for index in kept_indices(self.points, ("loss", "seconds"))]
            evaluations = [self.evaluations[done] for done in sorted(self.evaluations)]
            few = [{"after": (each["groups"].get("participating") or {}).get("after")} for each in evaluations]
            held: dict[str, Any] = json_ready(
                {
                    "head": self.head(),
                    "points": points,
                    "evaluations": [evaluations[index] for index in kept_indices(few, ("after",))],
                    "curves": self.curves,
                    "options": self.options,
                    "engine": self.engine,
                    "num_parameters": self.num_parameters,
                    "lines": list(self.lines)[-RECENT_LINES:],
                    "cursor": [self.round_cursor(), self.num_lines],
                }
            )
            return held

    def round_cursor(self) -> int:
        """Return the last round that points or evaluations tell of."""
        last = self.points[-1]["round"] if self.points else 0
        return max(last, max(self.evaluations, default=-1))

    def since(self, cursor: tuple[int, int]) -> dict[str, Any]:
        """Return what has come after a round and a line of the log, and where the run stands."""
        after, line = cursor
        with self.lock:
            points = list(self._points_after(after))
            rounds = [done for done in self.evaluations if done > after or done >= self.round]
            lines = [each for each in list(self.lines)[-RECENT_LINES:] if each["number"] > line]
            held: dict[str, Any] = json_ready(
                {
                    "head": self.head(),
                    "points": points,
                    "evaluations": [self.evaluations[done] for done in sorted(rounds)],
                    "curves": self.curves if rounds else None,
                    "lines": lines,
                    "cursor": [self.round_cursor(), self.num_lines],
                }
            )
            return held

    def _points_after(self, after: int) -> Iterable[dict[str, Any]]:
        start = len(self.points)
        while start and self.points[start - 1]["round"] > after:
            start -= 1
        return self.points[start:][-RECENT_LINES:]

    def page(self, wanted: Wanted) -> dict[str, Any]:
        """Return one page of the clients."""
        self.observed()
        with self.lock:
            held: dict[str, Any] = json_ready(
                {**page_of(self.clients.values(), wanted), "version": self.clients_version}
            )
            return held

    def _started(self, event: Mapping[str, Any]) -> None:
        first = int(event["first_round"])
        self.name = self.name or str(event.get("run") or "")
        self.options, self.engine = shareable_options(event["options"]), str(event["engine"])
        self.measure, self.step = str(event["measure"]), int(event.get("primary_step") or 0)
        self.num_rounds, self.num_parameters = int(event["num_rounds"]), int(event.get("num_parameters") or 0)
        self.status, self.reason, self.ended = "running", "", None
        self.points = [point for point in self.points if point["round"] < first]
        begun, before = event.get("time"), sum(point["seconds"] for point in self.points)
        self.begun = begun - before if before and begun else self.begun or begun  # a pause is no time of the run
        self.evaluations = {done: each for done, each in self.evaluations.items() if done < first}
        self.round, self.epoch = first - 1, self.epoch + 1
        going_on = f", going on at round {first}" if first > 1 else ""
        self.say("started", event.get("time"), f"the run has started{going_on}")

    def _joined(self, event: Mapping[str, Any]) -> None:
        row = self.client(str(event["client"]), event.get("time"))
        if row.connected_since is None or not row.is_online:
            row.connected_since = event.get("time")
            self.say("joined", event.get("time"), "joined", row.name)
        row.is_online, row.group = True, str(event.get("group") or row.group)
        row.num_examples = int(event.get("num_support") or row.num_examples)

    def _left(self, event: Mapping[str, Any]) -> None:
        row = self.client(str(event["client"]))
        row.is_online = row.is_working = False
        reason = str(event.get("reason") or "")
        if reason:
            row.reasons.append((self.round, without_folders(printable(reason))))
        self.say("left", event.get("time"), f"left: {reason}" if reason else "left", row.name, "warning")

    def _phase(self, event: Mapping[str, Any]) -> None:
        self.phase = str(event["phase"]) if event.get("seconds") is None else ""

    def _asked(self, event: Mapping[str, Any]) -> None:
        for name in event.get("clients") or ():
            row = self.client(str(name))
            row.is_working = True

    def _replied(self, event: Mapping[str, Any]) -> None:
        row = self.client(str(event["client"]), event.get("time"))
        row.is_working, row.is_online, row.failed_in_a_row = False, True, 0
        row.bytes_up += int(event["bytes_up"])
        row.bytes_down += int(event["bytes_down"])
        if event["phase"] == "training":
            row.rounds += 1
            row.train_seconds = event.get("client_seconds") or event.get("seconds")
            row.loss = event.get("loss")
        elif self.measure:
            row.before = (event.get("before") or {}).get(self.measure, row.before)
            row.after = (event.get("after") or {}).get(self.measure, row.after)

    def _rejected(self, event: Mapping[str, Any]) -> None:
        row = self.client(str(event["client"]))
        row.is_working = False
        row.bytes_up += int(event.get("bytes_up") or 0)
        row.bytes_down += int(event.get("bytes_down") or 0)
        if event["outcome"] == "dropped":  # nothing is wrong with it
            return
        row.rejections += 1
        row.failed_in_a_row += 1
        reason = without_folders(printable(str(event["reason"])))
        row.reasons.append((int(event["round"]), reason))
        text = f"{event['outcome']} in {event['phase']}, round {event['round']}: {reason}"
        self.say("rejected", event.get("time"), text, row.name, "warning")

    def _round(self, event: Mapping[str, Any]) -> None:
        self.round, self.num_rounds = int(event["round"]), int(event.get("num_rounds") or self.num_rounds)
        point = {name: event.get(name) for name in (*_POINT, "epsilon", "delta")}
        point |= {name: event.get(name) or 0 for name in ("gradient_evaluations", "hvps", "simulated_seconds")}
        point["seconds"] = float(event.get("seconds") or 0.0)
        self.points = [each for each in self.points if each["round"] < self.round] if self._repeats() else self.points
        self.points.append(json_ready(point))
        self.problems = {
            printable(str(name)): without_folders(printable(str(why)))
            for name, why in (event.get("problems") or {}).items()
        }
        if line := secure_line(event):
            self.say("secure", event.get("time"), f"round {self.round}: {without_folders(line)}")
        self.status = "running" if self.status == "waiting" else self.status
        evaluated = (event.get("evaluation") or {}).get("participating")
        if evaluated:
            self.judged(self.round, {"participating": evaluated})

    def _repeats(self) -> bool:
        return bool(self.points) and self.points[-1]["round"] >= self.round

    def _evaluation(self, event: Mapping[str, Any]) -> None:
        counts = event.get("num_clients") or {}
        groups = {
            name: {**curves, "measure": self.measure, "num_clients": counts.get(name, 0)}
            for name, curves in (event.get("groups") or {}).items()
        }
        self.judged(int(event["round"]), groups)
        for name, scores in (event.get("clients") or {}).items():
            row = self.client(str(name))
            row.group = str(scores.get("group") or row.group)
            row.before = sound_scores(scores.get("before")).get(self.measure)
            row.after = sound_scores(scores.get("after")).get(self.measure)
        what = "final evaluation" if event.get("final") else "evaluation"
        self.say("evaluation", event.get("time"), f"{what} after round {event['round']}")

    def judged(self, done: int, groups: Mapping[str, Any]) -> None:
        """Take note of curves of groups, as in summary.json, of the model after `done` rounds."""
        known = self.evaluations.setdefault(done, {"round": done, "groups": {}})
        for name, group in groups.items():
            if not group:
                continue
            self.measure = self.measure or str(group["measure"])
            curve = sound_curve(primary_curve(group))
            at = min(self.step, len(curve) - 1)
            known["groups"][name] = {
                "before": curve[0], "after": curve[at], "last": curve[-1], "num_clients": group["num_clients"],
            }  # fmt: skip
            older = self.curves.get(name, {}) if self.curves.get(name, {}).get("round") == done else {}
            self.curves[name] = {
                **older,
                "round": done,
                "num_clients": group["num_clients"],
                "curve": curve,
                **{key: json_ready(group[key]) for key in _SPREADS if group.get(key)},
            }

    def _note(self, event: Mapping[str, Any]) -> None:
        if _TOLD_ALREADY.search(str(event["text"])):
            return
        self.say("note", event.get("time"), str(event["text"]), level=str(event.get("level") or "info"))

    def _dropped(self, event: Mapping[str, Any]) -> None:
        text = f"{event['sink']} has missed {event['dropped']} events"
        self.say("sink-dropped", event.get("time"), text, level="warning")

    def _ended(self, event: Mapping[str, Any]) -> None:
        self.status, self.reason = str(event["status"]), without_folders(printable(str(event.get("reason") or "")))
        self.round, self.phase, self.ended = int(event["round"]), "", event.get("time")
        for row in self.clients.values():
            row.is_working = False
        if (summary := event.get("summary") or {}) and self.begun is not None and is_number(summary.get("seconds")):
            self.ended = self.begun + summary["seconds"]  # of its rounds, as everywhere else
        self.judged(self.round, {name: summary.get(name) for name in ("participating", "new") if summary.get(name)})
        level = "info" if self.status == "complete" else "warning"
        why = f": {self.reason}" if self.reason else ""
        self.say(str(event["event"]), event.get("time"), f"the run is over, {self.status}{why}", level=level)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


_HANDLERS: dict[str, Callable[[RunView, Mapping[str, Any]], None]] = {
    "started": RunView._started,
    "joined": RunView._joined,
    "left": RunView._left,
    "phase": RunView._phase,
    "asked": RunView._asked,
    "replied": RunView._replied,
    "rejected": RunView._rejected,
    "round": RunView._round,
    "evaluation": RunView._evaluation,
    "note": RunView._note,
    "sink-dropped": RunView._dropped,
    **dict.fromkeys(_ENDS, RunView._ended),
}
