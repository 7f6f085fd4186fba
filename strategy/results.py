"""What a phase leaves behind: who answered, what went wrong, and averages of the clients' metrics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from torch import Tensor

from nufed.common.errors import RunError
from nufed.common.message_schema import NUM_EXAMPLES, MetricValue
from nufed.common.params import Params
from nufed.strategy.weights import DEFAULT_MAX_WEIGHT, weight_limit

EvaluatedGroup = Literal["participating", "new", "all"]
Weighting = Literal["uniform", "examples"]
ClientMetrics = Mapping[str, Mapping[str, MetricValue]]


@dataclass(frozen=True)
class Counts:
    """What came of the clients asked: sampled = replied + rejected + failed + missing + dropped.

    Attributes:
        sampled: clients asked.
        replied: answered with something usable.
        rejected: answered with something that was refused.
        failed: answered that they failed, or were reported unreachable.
        missing: did not answer in time.
        dropped: were not waited for, because enough others had replied, or worked on a model that is too old.
    """

    sampled: int
    replied: int
    rejected: int
    failed: int
    missing: int
    dropped: int = 0

    def __post_init__(self) -> None:
        """Check that every client asked is counted once.

        Raises:
            RunError: the numbers do not add up.
        """
        if self.sampled != self.replied + self.rejected + self.failed + self.missing + self.dropped:
            raise RunError(
                f"Expected sampled = replied + rejected + failed + missing + dropped, got {self}. Report this defect."
            )


@dataclass(frozen=True)
class Averages:
    """Means over the clients that replied, of the metrics that all of them report.

    Attributes:
        numbers: means of scalar metrics.
        curves: means, element by element, of list metrics that have one length.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SecureOutcome:
    """How secure aggregation went in one round; nothing of it is about what single clients computed.

    Attributes:
        cohort: clients asked to take part.
        threshold: clients that had to stay to the end.
        summed: models in the sum; 0 if the round failed.
        dropped: clients lost, by stage of the protocol; those lost after their model came are in the sum all the same.
        late: why a client whose model is in the sum did not help to unmask it, by client id.
        seconds: by stage.
        bytes_up: of keys, shares and signatures received; masked models are counted with the arrays.
        bytes_down: of keys, shares and signatures sent.
        reason: why the round failed; empty if it did not.
    """

    cohort: int
    threshold: int
    summed: int
    dropped: dict[str, int]
    late: dict[str, str]
    seconds: dict[str, float]
    bytes_up: int
    bytes_down: int
    reason: str = ""


@dataclass(frozen=True)
class PhaseResult:
    """What a training or an evaluation phase left behind.

    Attributes:
        round: k.
        counts: what came of the clients asked.
        problems: reason by client id, for each client rejected, failed or missing.
        client_metrics: metrics by client id, for each client that replied; `num-examples` is among them.
        strays: replies that nobody was asked for, or that came twice; they are in no count.
        bytes_down: array content sent to clients.
        bytes_up: array content received from clients.
        seconds: from before the first message to after the last reply.
        max_weight: medians that a client may weigh in the weighted averages.
        dropped: clients whose work was dropped, though nothing is wrong with it.
        simulated_seconds: that the phase took in simulated time; None where there is none.
    """

    round: int
    counts: Counts
    problems: dict[str, str]
    client_metrics: dict[str, dict[str, MetricValue]]
    strays: int
    bytes_down: int
    bytes_up: int
    seconds: float
    max_weight: float = field(default=DEFAULT_MAX_WEIGHT, kw_only=True)
    dropped: tuple[str, ...] = field(default=(), kw_only=True)
    simulated_seconds: float | None = field(default=None, kw_only=True)

    @property
    def mean_metrics(self) -> dict[str, float]:
        """Unweighted means over clients of the scalar metrics that all of them report."""
        return average(self.client_metrics, "uniform").numbers

    @property
    def weighted_metrics(self) -> dict[str, float]:
        """Means weighted by `num-examples`, empty if there are no examples."""
        return average(self.client_metrics, "examples", self.max_weight).numbers


@dataclass(frozen=True)
class Spent:
    """What the models of a run so far reveal of whether a client took part.

    Attributes:
        epsilon: ε.
        delta: δ.
    """

    epsilon: float
    delta: float


@dataclass(frozen=True)
class BufferOutcome:
    """What a buffered step was made of.

    Attributes:
        mean_staleness: mean over its replies of the steps that were made while their clients were at work.
        max_staleness: the most of them.
        at_work: clients at work when the step was made.
        models: of earlier steps that the server keeps for them.
    """

    mean_staleness: float
    max_staleness: int
    at_work: int
    models: int


@dataclass(frozen=True)
class RoundResult(PhaseResult):
    """What a training round left behind.

    Attributes:
        params: w_{k+1}; w_k itself if no valid reply came and nothing is private.
        privacy: what the models so far have revealed; None without differential privacy.
        secure: how secure aggregation went; None without.
        server_state: what the server's optimizer remembers after the step to w_{k+1}; what it did before where there
            was no step.
        buffer: of a buffered step; None of a synchronous round.
    """

    params: Params
    privacy: Spent | None = None
    secure: SecureOutcome | None = field(default=None, kw_only=True)
    server_state: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    buffer: "BufferOutcome | None" = field(default=None, kw_only=True)

    @property
    def num_diverged(self) -> int:
        """Clients whose reply was used though its `loss` is not finite."""
        losses = [metrics.get("loss") for metrics in self.client_metrics.values()]
        return sum(isinstance(loss, float) and not math.isfinite(loss) for loss in losses)


@dataclass(frozen=True)
class EvaluationResult(PhaseResult):
    """What an evaluation phase left behind.

    Attributes:
        group: who was asked.
    """

    group: EvaluatedGroup


def average(client_metrics: ClientMetrics, weighting: Weighting, max_weight: float = DEFAULT_MAX_WEIGHT) -> Averages:
    """Return means over clients of the metrics that all of them report alike.

    A metric that a client lacks, or reports with another type or length, is left out for everybody. A number that is
    not finite is left out of its mean, which is NaN only where no number is left: one client that diverged, or says
    so, does not take the others' mean away. Clients are taken in the order of their ids, so that the order in which
    they answered leaves no trace.

    Args:
        client_metrics: metrics by client id.
        weighting: `uniform`, or `examples` for weights by `num-examples`.
        max_weight: medians of `num-examples` that a client may weigh.
    """
    clients = [client_metrics[client_id] for client_id in sorted(client_metrics)]
    weights = [1] * len(clients)
    if weighting == "examples":
        examples = [_num_examples(metrics) for metrics in clients]
        limit = weight_limit(examples, max_weight)
        weights = [min(number, limit) for number in examples]
    if sum(weights) == 0:
        return Averages()
    numbers: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for name in sorted(set.intersection(*(set(metrics) for metrics in clients)) - {NUM_EXAMPLES}):
        values = [metrics[name] for metrics in clients]
        scalars = [value for value in values if isinstance(value, int | float)]
        lists = [value for value in values if isinstance(value, list)]
        if len(scalars) == len(clients):
            numbers[name] = _mean(scalars, weights)
        elif len(lists) == len(clients) and len({len(curve) for curve in lists}) == 1:
            curves[name] = [_mean(step, weights) for step in zip(*lists, strict=True)]
    return Averages(numbers, curves)


def _num_examples(metrics: Mapping[str, MetricValue]) -> int:
    """Return the count that `nufed.common.wire` has checked when the reply came in."""
    return cast("int", metrics[NUM_EXAMPLES])


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return Σ w x / Σ w over the values that are finite; NaN if there is no weight among them."""
    finite = [(value, weight) for value, weight in zip(values, weights, strict=True) if math.isfinite(value)]
    total = sum(weight for _, weight in finite)
    return sum(value * weight for value, weight in finite) / total if total else math.nan
