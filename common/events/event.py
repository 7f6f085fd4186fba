"""What every event of a run has: the run, the time, and a name in JSON."""

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from nufed.common.privacy.publishing import Publication

PhaseName = Literal["statistics", "tuning", "training", "evaluation"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run.

    Attributes:
        run: name of the run's folder; empty before there is one.
        time: seconds since 1970.
    """

    kind: ClassVar[str] = ""
    is_minor: ClassVar[bool] = False
    """Whether it is about single clients, so that there may be very many of them."""

    run: str = ""
    time: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, but for numbers that are not finite; `from_json` reads them back."""
        return {"event": self.kind, **self.__dict__}

    def reduced(self) -> Self:
        """Return the record without what it says of single clients."""
        return self

    def within(self, publication: Publication) -> Self | None:  # noqa: ARG002 - most records withhold nothing
        """Return the record without what is withheld; None where nothing is left to tell."""
        return self
