"""The clients of a run as rows of a table: what each did, sorted, filtered and cut into pages on this side."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["working", "idle", "left"]

PAGE = 50
MOST_REASONS = 5
COLUMNS = (
    *("name", "group", "state", "connected_since", "last_seen", "rounds", "bytes_up", "bytes_down", "train_seconds"),
    *("loss", "before", "after", "rejections"),
)
"""What rows can be sorted by."""


@dataclass
class ClientRow:
    """One client; holds what its events have told so far.

    Attributes:
        name: its stable name.
        group: `participating` or `new`; empty while unknown.
        is_online: whether it is connected.
        is_working: whether it was asked and has not answered.
        connected_since: seconds since 1970; None if unknown.
        last_seen: likewise.
        rounds: training rounds that its reply was used in.
        bytes_up: received from it.
        bytes_down: sent to it.
        train_seconds: that it worked in its last training round; None if unknown.
        loss: mean training loss of its last round.
        before: of its last evaluation, what the run is judged by before fine-tuning.
        after: after s* fine-tuning steps.
        num_examples: examples to train and adapt on; 0 if unknown.
        rejections: replies that could not be used.
        reasons: (round, why) of the last ones.
        failed_in_a_row: replies that could not be used since the last one that could.
    """

    name: str
    group: str = ""
    is_online: bool = True
    is_working: bool = False
    connected_since: float | None = None
    last_seen: float | None = None
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    train_seconds: float | None = None
    loss: float | None = None
    before: float | None = None
    after: float | None = None
    num_examples: int = 0
    rejections: int = 0
    reasons: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=MOST_REASONS))
    failed_in_a_row: int = 0

    @property
    def state(self) -> State:
        """Whether it works, waits, or is not there."""
        if not self.is_online:
            return "left"
        return "working" if self.is_working else "idle"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        values = {name: getattr(self, name) for name in COLUMNS}
        return {**values, "num_examples": self.num_examples, "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Wanted:
    """Which rows, in which order.

    Attributes:
        text: part of the name or of a reason, in any case; empty takes all.
        group: `participating` or `new`; empty takes both.
        state: one of `State`, or `rejected` for those with replies that could not be used; empty takes all.
        by: column to sort by.
        descending: whether the largest comes first.
        page: from 0.
    """

    text: str = ""
    group: str = ""
    state: str = ""
    by: str = "name"
    descending: bool = False
    page: int = 0

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> "Wanted":
        """Return what a query asks for; what it misspells counts as left out."""
        by = query.get("sort", "name")
        page = query.get("page", "0")
        return cls(
            text=query.get("q", "")[:200].casefold(),
            group=query.get("group", ""),
            state=query.get("state", ""),
            by=by if by in COLUMNS else "name",
            descending=query.get("order") == "desc",
            page=int(page) if page.isascii() and page.isdigit() and len(page) < 7 else 0,
        )


def page_of(rows: Iterable[ClientRow], wanted: Wanted) -> dict[str, Any]:
    """Return one page of rows with how many there are; rows without a number to sort by come last."""
    found = [row for row in rows if _is_wanted(row, wanted)]
    found.sort(key=lambda row: row.name)
    known = [row for row in found if getattr(row, wanted.by) not in (None, "")]
    unknown = [row for row in found if getattr(row, wanted.by) in (None, "")]
    known.sort(key=lambda row: getattr(row, wanted.by), reverse=wanted.descending)
    ordered = known + unknown
    pages = max(1, -(-len(ordered) // PAGE))
    page = min(wanted.page, pages - 1)
    shown = ordered[page * PAGE : (page + 1) * PAGE]
    return {"total": len(ordered), "page": page, "pages": pages, "rows": [row.to_json() for row in shown]}


def _is_wanted(row: ClientRow, wanted: Wanted) -> bool:
    if wanted.group and row.group != wanted.group:
        return False
    if wanted.state and wanted.state != row.state and not (wanted.state == "rejected" and row.rejections):
        return False
    texts = (row.name, *(reason for _, reason in row.reasons))
    return not wanted.text or any(wanted.text in text.casefold() for text in texts)
