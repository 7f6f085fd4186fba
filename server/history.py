"""What a run has seen so far: the numbers that its summary needs, kept in every checkpoint."""

from dataclasses import dataclass, replace
from typing import Any

from nufed.common.errors import RunError
from nufed.server.curve_means import Curve


@dataclass(frozen=True)
class Totals:
    """Sums over the rounds done.

    Attributes:
        gradient_evaluations: of training, over all clients.
        hvps: Hessian-vector products of training, over all clients.
        bytes_up: arrays received by the server.
        bytes_down: arrays sent by the server.
        rejected: replies that were refused.
        failed: replies that were errors.
        missing: replies that did not come in time.
        rounds_without_reply: rounds in which no reply could be used, so that the model stayed as it was.
        seconds: wall time of rounds and their evaluations.
    """

    gradient_evaluations: int = 0
    hvps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    rejected: int = 0
    failed: int = 0
    missing: int = 0
    rounds_without_reply: int = 0
    seconds: float = 0.0

    def plus(self, record: dict[str, Any]) -> "Totals":
        """Return the sums with one round's record added."""
        added = {**record, "rounds_without_reply": int(record["replied"] == 0)}
        return Totals(**{name: value + added[name] for name, value in vars(self).items()})


@dataclass(frozen=True)
class History:
    """Sums and evaluations so far.

    Attributes:
        totals: sums over the rounds done.
        evaluations: (round, mean adaptation curve of the participating clients), in the order of rounds; of the
            primary metric.
    """

    totals: Totals = Totals()
    evaluations: tuple[tuple[int, Curve], ...] = ()

    def after_round(self, record: dict[str, Any]) -> "History":
        """Return the history with one round's record added."""
        return replace(self, totals=self.totals.plus(record))

    def after_evaluation(self, round_done: int, curve: Curve) -> "History":
        """Return the history with one evaluation added, in the place of an earlier one of the same round."""
        earlier = tuple(each for each in self.evaluations if each[0] != round_done)
        return replace(self, evaluations=(*earlier, (round_done, curve)))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; `from_json` reads them back."""
        return {"totals": vars(self.totals), "evaluations": [[done, list(curve)] for done, curve in self.evaluations]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "History":
        """Read a history back; numbers that were not finite come back as NaN.

        Raises:
            RunError: it is no history.
        """
        try:
            evaluations = tuple(
                (int(done), tuple(float("nan") if number is None else float(number) for number in curve))
                for done, curve in values["evaluations"]
            )
            return cls(Totals(**values["totals"]), evaluations)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"Expected sums and evaluations in a checkpoint's history, but {error}. Resume with the version of "
                "NuFed that wrote it, or start a new run."
            ) from error
