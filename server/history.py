"""What a run has seen so far: the numbers that its summary needs, kept in every checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nufed.common.errors import RunError
from nufed.server.curve_means import Curve
from nufed.strategy.results import PhaseResult


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
        dropped: clients whose work was dropped, though nothing was wrong with it.
        seconds: wall time of rounds and their evaluations.
        simulated_seconds: simulated time of rounds.
    """

    gradient_evaluations: int = 0
    hvps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    rejected: int = 0
    failed: int = 0
    missing: int = 0
    dropped: int = 0
    rounds_without_reply: int = 0
    seconds: float = 0.0
    simulated_seconds: float = 0.0

    def plus(self, record: dict[str, Any]) -> "Totals":
        """Return the sums with one round's record added; what is withheld adds nothing."""
        added = {**record, "rounds_without_reply": int(record["replied"] == 0)}
        return Totals(**{name: value + (added.get(name) or 0) for name, value in vars(self).items()})


@dataclass(frozen=True)
class History:
    """Sums and evaluations so far.

    Attributes:
        totals: sums over the rounds done.
        evaluations: (round, mean adaptation curve of the participating clients), in the order of rounds; of the
            primary metric.
        rounds_asked: client -> rounds that it was asked to train in; of a run that accounts for clients' records.
        epsilons: client -> ε of its records as it told last, where it keeps an account.
    """

    totals: Totals = Totals()
    evaluations: tuple[tuple[int, Curve], ...] = ()
    rounds_asked: Mapping[str, int] = field(default_factory=dict)
    epsilons: Mapping[str, float] = field(default_factory=dict)

    def after_round(self, record: dict[str, Any]) -> "History":
        """Return the history with one round's record added."""
        return replace(self, totals=self.totals.plus(record))

    def after_training(self, result: PhaseResult) -> "History":
        """Return the history with what a round has cost its clients' records; also those who failed were asked."""
        asked = [*result.client_metrics, *result.problems, *result.dropped]
        counts = {**self.rounds_asked, **{name: self.rounds_asked.get(name, 0) + 1 for name in asked}}
        told = {name: metrics.get("epsilon") for name, metrics in result.client_metrics.items()}
        found = {name: float(value) for name, value in told.items() if isinstance(value, int | float)}
        return replace(self, rounds_asked=counts, epsilons={**self.epsilons, **found})

    def after_evaluation(self, round_done: int, curve: Curve) -> "History":
        """Return the history with one evaluation added, in the place of an earlier one of the same round."""
        earlier = tuple(each for each in self.evaluations if each[0] != round_done)
        return replace(self, evaluations=(*earlier, (round_done, curve)))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; `from_json` reads them back."""
        values = {"totals": vars(self.totals), "evaluations": [[done, list(curve)] for done, curve in self.evaluations]}
        costs = {"rounds_asked": dict(self.rounds_asked), "epsilons": dict(self.epsilons)}
        return {**values, **(costs if self.rounds_asked else {})}

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
            counts = {str(name): int(count) for name, count in values.get("rounds_asked", {}).items()}
            epsilons = {str(name): float(value) for name, value in values.get("epsilons", {}).items()}
            return cls(Totals(**values["totals"]), evaluations, counts, epsilons)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"Expected sums and evaluations in a checkpoint's history, but {error}. Resume with the version of "
                "NuFed that wrote it, or start a new run."
            ) from error
