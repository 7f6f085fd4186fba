"""What an operator of a run should look at now, the gravest first."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nufed.common.metric_looks import look_of
from nufed.common.privacy.publishing import withheld_by

if TYPE_CHECKING:
    from nufed.deploy.dashboard.run_view import RunView

_LISTED = 5
_IN_A_ROW = 3
"""Replies in a row that could not be used, from which on a client is named."""
_STANDSTILL = 5
"""Evaluations without a better one, from which on it is said."""
_SILENT = 60.0
"""Seconds without an event, and at least three usual rounds, after which a run counts as silent."""

_ENDED = {
    "diverged": "The run has diverged",
    "nothing-trained": "Nothing was trained",
    "interrupted": "The run was interrupted; it can go on with --resume",
    "budget-spent": "Another round would take ε beyond its budget; the run can go on with a larger one",
    "killed": "The run ended without saying how; it can go on with --resume",
    "damaged": "Files of this run are damaged",
}


def attention(view: "RunView", now: float) -> list[dict[str, Any]]:
    """Return what needs attention: `level` (error, warning or info), `text`, and `items`, texts that go with it.

    Args:
        view: of the run, whose lock is held.
        now: seconds since 1970.
    """
    found = [
        *_on_end(view),
        *_on_privacy(view),
        *_on_clients(view),
        *_on_replies(view),
        *_on_progress(view),
        *_on_silence(view, now),
    ]
    ranks = {"error": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda each: ranks[each["level"]])


def _entry(level: str, text: str, items: list[str] | None = None) -> dict[str, Any]:
    listed = items or []
    more = [f"and {len(listed) - _LISTED} more"] if len(listed) > _LISTED else []
    return {"level": level, "text": text, "items": [*listed[:_LISTED], *more]}


def _on_end(view: "RunView") -> Iterator[dict[str, Any]]:
    if view.status in _ENDED:
        level = "info" if view.status in ("interrupted", "budget-spent") else "error"
        yield _entry(level, _ENDED[view.status], [view.reason] if view.reason else [])


def _on_privacy(view: "RunView") -> Iterator[dict[str, Any]]:
    if withheld := withheld_by(view.options):
        yield _entry("info", "Not shown, because ε does not cover it (--publish shows it)", [", ".join(withheld)])
    spent = view.points[-1].get("epsilon") if view.points else None
    if isinstance(spent, int | float):
        budget = view.options.get("privacy.epsilon") or 0
        of = f" of a budget of {budget:g}" if isinstance(budget, int | float) and budget else ""
        delta = view.points[-1].get("delta")
        at = f" (δ = {delta:.3g})" if isinstance(delta, int | float) else ""
        yield _entry("info", f"ε = {spent:.3g}{of}{at} after round {view.round}")


def _on_clients(view: "RunView") -> Iterator[dict[str, Any]]:
    if view.is_over:
        return
    left = sorted(row.name for row in view.clients.values() if not row.is_online)
    if left:
        yield _entry("warning", f"{_counted(len(left), 'client')} left", left)
    if view.status == "waiting":
        here = sum(row.is_online for row in view.clients.values())
        yield _entry("info", f"Waiting for clients: {here} connected so far")


def _on_replies(view: "RunView") -> Iterator[dict[str, Any]]:
    if view.problems:
        reasons = [f"{name}: {why}" for name, why in view.problems.items()]
        what = _counted(len(reasons), "reply", "replies")
        yield _entry("warning", f"{what} of round {view.round} could not be used", reasons)
    again = sorted(row.name for row in view.clients.values() if row.failed_in_a_row >= _IN_A_ROW)
    if again and not view.is_over:
        yield _entry("warning", f"{_counted(len(again), 'client')} failed {_IN_A_ROW} times in a row or more", again)
    idle = sum(point.get("replied") == 0 for point in view.points)
    if idle:
        yield _entry("warning", f"In {idle} of {len(view.points)} rounds no reply could be used")


def _on_progress(view: "RunView") -> Iterator[dict[str, Any]]:
    after = [
        (done, each["groups"]["participating"]["after"])
        for done, each in sorted(view.evaluations.items())
        if "participating" in each["groups"]
    ]
    known = [(value, done) for done, value in after if value is not None]
    if len(known) < len(after):
        yield _entry("warning", "Clients have diverged in an evaluation")
    if view.status != "running" or len(known) <= _STANDSTILL:
        return
    best, at = (
        min(known) if look_of(view.measure).better == "lower" else max(known, key=lambda each: (each[0], -each[1]))
    )
    later = sum(done > at for _, done in known)
    if later >= _STANDSTILL:
        yield _entry("info", f"No better for {later} evaluations: the best {view.measure} was {best:.4g}, round {at}")


def _on_silence(view: "RunView", now: float) -> Iterator[dict[str, Any]]:
    if view.status != "running" or view.last_event is None:
        return
    usual = max((point["seconds"] for point in view.points[-_LISTED:]), default=_SILENT)
    silent = now - view.last_event
    if silent > max(_SILENT, 3 * usual):
        yield _entry("warning", f"Nothing has happened for {silent / 60:.0f} minutes")


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or f'{one}s'}"
