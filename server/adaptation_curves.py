"""What fine-tuning does to the server's model: curves over s = 0..S steps, for one client and for a group.

Fallah, Mokhtari and Ozdaglar (2020) report accuracy after one step; here every step is reported, and the spread
over clients. All curves start from the server's model, never from a model that a client kept.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nufed.common.examples import Group
from nufed.common.metric_looks import LOSS, look_of, sign_of
from nufed.server.client_curves import ACCURACY, ClientCurves
from nufed.server.curve_means import (
    Curve,
    Floats,
    as_curve,
    finite,
    mean_curve,
    mean_of_finite,
    spread,
    stacked,
    worst_decile,
)
from nufed.strategy.weights import DEFAULT_MAX_WEIGHT, weight_limit

_ROUNDING = 1e-12  # error of a mean of numbers in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Detail:
    """How a metric beside the primary one is spread over a group's clients; element s is after s steps.

    Attributes:
        better: whether more of it is better, `higher`, or less, `lower`.
        num_clients: clients that reported it.
        num_undefined: how many of them for whom it is undefined, and who count in no mean.
        worst_decile: mean over the ⌈0.1 n⌉ clients that are worst at s; NaN where a client has diverged.
        spread: standard deviation over clients.
    """

    better: str
    num_clients: int
    num_undefined: tuple[int, ...]
    worst_decile: Curve
    spread: Curve


@dataclass(frozen=True, kw_only=True)
class GroupCurves:
    """A group's curves: element s is after s fine-tuning steps.

    Means and spread are over the clients that have not diverged at s and for whom the metric is defined, and NaN where
    none is left.

    Attributes:
        num_clients: clients in the group that answered.
        num_diverged: how many of them have diverged at s.
        num_undefined: for how many of the others the measure is undefined at s.
        measure: the primary metric, which `worst_decile`, `spread`, `gain` and `area` are about; may be `loss`.
        better: whether more of it is better, `higher`, or less, `lower`.
        accuracy: A(s), unweighted mean over clients; None where they are not judged by it.
        accuracy_weighted: mean weighted by test examples, bounded as in training (`weights.py`).
        loss: unweighted mean over clients.
        loss_weighted: likewise.
        worst_decile: W(s), mean over the ⌈0.1 n⌉ clients that are worst at s; NaN where a client has diverged.
        spread: standard deviation over clients (n - 1 in the denominator; 0 for one client).
        gain: A(s*) - A(0), or how far the measure fell from 0 to s* where less is better: positive is better. Over the
            clients that have a number at both.
        area: mean over s = 0..S of the measure.
        validation_accuracy: unweighted mean over the clients that have a validation split; None without any.
        validation_loss: likewise.
        metrics: unweighted means of further metrics over the clients that have them, e.g. `test-auroc`.
        details: metric -> how the test split's numbers are spread, for what is not the measure.
        baselines: metric, or `loss` -> mean over clients of what the same answer to every example gets.
        intervals: metric -> of the clients that were judged on few examples the number, and half the width of the 95 %
            interval of the metric after s* steps, median over these clients.
    """

    num_clients: int
    num_diverged: tuple[int, ...]
    num_undefined: tuple[int, ...] = ()
    measure: str
    better: str = ""
    accuracy: Curve | None
    accuracy_weighted: Curve | None
    loss: Curve
    loss_weighted: Curve
    worst_decile: Curve
    spread: Curve
    gain: float
    area: float
    validation_accuracy: Curve | None
    validation_loss: Curve | None
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    details: Mapping[str, Detail] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def mean(self) -> Curve:
        """Return the mean of the measure over clients."""
        if self.measure == LOSS:
            return self.loss
        found = self.accuracy if self.measure == ACCURACY else self.metrics.get(f"test-{self.measure}")
        return found if found is not None else self.loss

    @property
    def sign(self) -> float:
        """Return 1 where more of the measure is better, else -1."""
        return sign_of(self.better or look_of(self.measure).better)

    def to_json(self) -> dict[str, Any]:
        """Return the curves as JSON values; `nufed.common.json_text.json_ready` turns NaN into null."""
        optional = ("metrics", "details", "baselines", "intervals")
        return {key: value for key, value in asdict(self).items() if value or key not in optional}


def group_curves(  # noqa: PLR0913 - all but two by name
    clients: Iterable[ClientCurves],
    group: Group,
    *,
    primary_step: int,
    measure: str | None = None,
    betters: Mapping[str, str] | None = None,
    max_weight: float = DEFAULT_MAX_WEIGHT,
) -> GroupCurves | None:
    """Return the curves of the clients of one group, or None if none of them answered.

    The result does not depend on the order of `clients`.

    Args:
        clients: curves of equal length, of any groups.
        group: which clients to take.
        primary_step: s*, the step that the gain is quoted at.
        measure: the primary metric; None takes accuracy if any of the clients has one, else the loss.
        betters: metric -> whether more of it is better, `higher`, or less, `lower`; for those that come along it is
            known.
        max_weight: in the weighted means, a client counts at most this many times the median client.
    """
    members = sorted((client for client in clients if client.group == group), key=lambda client: client.client_id)
    if not members:
        return None
    if measure is None:
        measure = LOSS if all(client.test_accuracy is None for client in members) else ACCURACY
    with np.errstate(invalid="ignore", over="ignore"):  # shows as NaN or infinite, not as a warning
        limit = weight_limit((client.num_test for client in members), max_weight)
        return _summarize(members, primary_step, measure, (betters or {}, limit))


def rounds_to_target(evaluations: Sequence[tuple[int, float]], target: float, window: int = 3) -> int | None:
    """Return the first evaluated round at which the mean of the last evaluations reaches the target, or None.

    Args:
        evaluations: (round, primary metric at s*), in the order of rounds; negative where less is better.
        target: what is to be reached; negative likewise.
        window: evaluations in the mean; where there are fewer yet, all of them, so that round 0 can be the answer.
    """
    for end in range(1, len(evaluations) + 1):
        recent = [value for _, value in evaluations[max(0, end - window) : end]]
        if math.fsum(value / len(recent) for value in recent) >= target - _ROUNDING:
            return evaluations[end - 1][0]
    return None


def _summarize(
    members: Sequence[ClientCurves], primary_step: int, measure: str, how: tuple[Mapping[str, str], int]
) -> GroupCurves:
    betters, limit = how
    better = betters.get(measure) or look_of(measure).better
    sign = sign_of(better)
    weights = np.array([min(client.num_test, limit) for client in members], dtype=np.float64)
    losses = finite(np.array([client.test_loss for client in members], dtype=np.float64))
    diverged = np.isnan(losses)
    has_accuracy = any(client.test_accuracy is not None for client in members)
    accuracies = stacked([client.test_accuracy for client in members], losses) if has_accuracy else None
    judged = losses if measure == LOSS else stacked([client.curve(measure) for client in members], losses)
    assert judged is not None  # noqa: S101 - with `of`, it is an array
    both = judged[np.isfinite(judged[:, [0, primary_step]]).all(axis=1)]
    return GroupCurves(
        num_clients=len(members),
        num_diverged=tuple(int(count) for count in diverged.sum(axis=0)),
        num_undefined=_num_undefined(judged, diverged),
        measure=measure,
        better=better,
        accuracy=mean_curve(accuracies),
        accuracy_weighted=mean_curve(accuracies, weights),
        loss=as_curve(mean_of_finite(losses)),
        loss_weighted=as_curve(mean_of_finite(losses, weights)),
        worst_decile=as_curve(sign * worst_decile(sign * judged, diverged)),
        spread=as_curve(spread(judged)),
        gain=float(sign * (mean_of_finite(both)[primary_step] - mean_of_finite(both)[0])),
        area=float(mean_of_finite(judged).mean()),
        validation_accuracy=mean_curve(stacked([client.validation_accuracy for client in members])),
        validation_loss=mean_curve(stacked([client.validation_loss for client in members])),
        metrics=_further(members),
        details=_details(members, measure, betters),
        baselines=_baselines(members),
        intervals=_intervals(members),
    )


def _num_undefined(curves: Floats, diverged: Any) -> tuple[int, ...]:
    return tuple(int(count) for count in (np.isnan(curves) & ~diverged).sum(axis=0))


def _further(members: Sequence[ClientCurves]) -> dict[str, Curve]:
    curves = {key: [client.metrics.get(key) for client in members] for client in members for key in client.metrics}
    return {key: mean for key, found in curves.items() if (mean := mean_curve(stacked(found))) is not None}


def _details(members: Sequence[ClientCurves], measure: str, betters: Mapping[str, str]) -> dict[str, Detail]:
    """Return how the metrics that are not the measure are spread, over the clients that report them."""
    keys = dict.fromkeys(key for client in members for key in client.metrics if key.startswith("test-"))
    names = [name for key in keys if (name := key.removeprefix("test-")) != measure]
    found: dict[str, Detail] = {}
    for name in names:
        who = [client for client in members if client.curve(name) is not None]
        losses = finite(np.array([client.test_loss for client in who], dtype=np.float64))
        curves, diverged = stacked([client.curve(name) for client in who], losses), np.isnan(losses)
        assert curves is not None  # noqa: S101 - with `of`, it is an array
        better = betters.get(name) or look_of(name).better
        sign = sign_of(better)
        found[name] = Detail(
            better=better,
            num_clients=len(who),
            num_undefined=_num_undefined(curves, diverged),
            worst_decile=as_curve(sign * worst_decile(sign * curves, diverged)),
            spread=as_curve(spread(curves)),
        )
    return found


def _baselines(members: Sequence[ClientCurves]) -> dict[str, float]:
    names = dict.fromkeys(name for client in members for name in client.baselines)
    found = {name: [client.baselines.get(name, math.nan) for client in members] for name in names}
    return {name: float(mean_of_finite(np.array(values)[:, None])[0]) for name, values in found.items()}


def _intervals(members: Sequence[ClientCurves]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(name for client in members for name in client.intervals)
    widths = {name: [each.intervals[name] for each in members if name in each.intervals] for name in names}
    return {
        name: {"num_clients": len(ends), "half_width": float(np.median([(high - low) / 2 for low, high in ends]))}
        for name, ends in widths.items()
    }
