"""What fine-tuning does to the server's model: curves over s = 0..S steps, for one client and for a group.

Fallah, Mokhtari and Ozdaglar (2020) report accuracy after one step; here every step is reported, and the spread
over clients. All curves start from the server's model, never from a model that a client kept.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nufed.common.errors import WireError
from nufed.common.examples import Group
from nufed.common.metrics import further_curves
from nufed.common.wire import ClientDescription, EvaluateReply
from nufed.server.shot_curves import ShotCurves, shots_of_reply
from nufed.strategy.weights import DEFAULT_MAX_WEIGHT, weight_limit

Curve = tuple[float, ...]
Measure = Literal["accuracy", "loss"]

_KEYS = ("test-loss", "test-accuracy", "validation-loss", "validation-accuracy")

_ROUNDING = 1e-12  # error of a mean of numbers in [0, 1]


@dataclass(frozen=True, kw_only=True)
class ClientCurves:
    """One client's curves: element s is after s fine-tuning steps on its support split.

    A client has diverged at s if its test loss there is not finite. Its accuracy is NaN then: of outputs that are NaN,
    the largest is the first, so that what was counted is how many examples belong to class 0.

    Attributes:
        client_id: stable name.
        group: `participating` or `new`.
        num_support: examples that were adapted on.
        num_validation: examples of the validation split.
        num_test: examples that were judged on.
        test_loss: mean over test examples, [S+1].
        test_accuracy: share of test examples, in [0, 1], [S+1]; None for regression.
        validation_loss: as `test_loss` on the validation split; None if it is empty.
        validation_accuracy: as `test_accuracy` on the validation split; None if it is empty, or for regression.
        metrics: curves of further metrics (`nufed.common.metrics`), e.g. `test-top-5`.
        shots: after fine-tuning on so many support examples instead of all.
    """

    client_id: str
    group: Group
    num_support: int
    num_test: int
    test_loss: Curve
    test_accuracy: Curve | None = None
    validation_loss: Curve | None = None
    validation_accuracy: Curve | None = None
    num_validation: int = 0
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    shots: Mapping[int, ShotCurves] = field(default_factory=dict)

    @classmethod
    def from_reply(
        cls,
        description: ClientDescription,
        reply: EvaluateReply,
        *,
        num_adapt_steps: int,
        measure: Measure = "loss",
    ) -> "ClientCurves":
        """Return the curves that a client answered with.

        Args:
            description: who the client is.
            reply: what it answered.
            num_adapt_steps: S; every curve must have S + 1 elements.
            measure: what the task is judged by, which the reply must have.

        Raises:
            WireError: a curve that is needed is missing, or a curve has another length or is no list.
        """
        length = num_adapt_steps + 1
        further = further_curves()
        curves = {key: _curve(reply, key, description.client_id, length) for key in (*_KEYS, *further)}
        test_loss = curves["test-loss"]
        if test_loss is None or curves[f"test-{measure}"] is None:
            missing = "test-loss" if test_loss is None else f"test-{measure}"
            raise WireError(
                f"client {description.client_id!r} answered without {missing!r}; expected a list of {length} numbers; "
                "the client runs another app or version"
            )
        return cls(
            client_id=description.client_id,
            group=description.group,
            num_support=description.num_support,
            num_validation=description.num_validation,
            num_test=description.num_test,
            test_loss=test_loss,
            test_accuracy=_where_finite(curves["test-accuracy"], test_loss),
            validation_loss=curves["validation-loss"],
            validation_accuracy=_where_finite(curves["validation-accuracy"], curves["validation-loss"]),
            metrics={key: found for key in further if (found := curves[key]) is not None},
            shots=shots_of_reply(reply.metrics),
        )

    def has_diverged(self, step: int) -> bool:
        """Return whether fine-tuning has left the finite numbers after `step` steps."""
        return not math.isfinite(self.test_loss[step])


@dataclass(frozen=True, kw_only=True)
class GroupCurves:
    """A group's curves: element s is after s fine-tuning steps.

    Means and spread are over the clients that have not diverged at s, and NaN where none is left.

    Attributes:
        num_clients: clients in the group that answered.
        num_diverged: how many of them have diverged at s.
        measure: what `worst_decile`, `spread`, `gain` and `area` are about; `loss` for regression.
        accuracy: A(s), unweighted mean over clients; None for regression.
        accuracy_weighted: mean weighted by test examples, bounded as in training (`weights.py`); None for regression.
        loss: unweighted mean over clients.
        loss_weighted: likewise.
        worst_decile: W(s), mean over the ⌈0.1 n⌉ clients that are worst at s; NaN where a client has diverged.
        spread: standard deviation over clients (n - 1 in the denominator; 0 for one client).
        gain: A(s*) - A(0), or how far the loss fell from 0 to s* for regression: positive is better. Over the clients
            that have diverged at neither.
        area: mean over s = 0..S of A(s), or of the loss for regression.
        validation_accuracy: unweighted mean over the clients that have a validation split; None without any.
        validation_loss: likewise.
        metrics: unweighted means of further metrics over the clients that have them; absent without any.
    """

    num_clients: int
    num_diverged: tuple[int, ...]
    measure: Measure
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

    def to_json(self) -> dict[str, Any]:
        """Return the curves as JSON values; `nufed.common.durable_file.json_ready` turns NaN into null."""
        values = asdict(self)
        return values if self.metrics else {key: value for key, value in values.items() if key != "metrics"}


def group_curves(
    clients: Iterable[ClientCurves],
    group: Group,
    *,
    primary_step: int,
    measure: Measure | None = None,
    max_weight: float = DEFAULT_MAX_WEIGHT,
) -> GroupCurves | None:
    """Return the curves of the clients of one group, or None if none of them answered.

    The result does not depend on the order of `clients`.

    Args:
        clients: curves of equal length, of any groups.
        group: which clients to take.
        primary_step: s*, the step that the gain is quoted at.
        measure: what the task is judged by; None takes accuracy if any of the clients has one.
        max_weight: in the weighted means, a client counts at most this many times the median client.
    """
    members = sorted((client for client in clients if client.group == group), key=lambda client: client.client_id)
    if not members:
        return None
    if measure is None:
        measure = "loss" if all(client.test_accuracy is None for client in members) else "accuracy"
    with np.errstate(invalid="ignore", over="ignore"):  # shows as NaN or infinite, not as a warning
        limit = weight_limit((client.num_test for client in members), max_weight)
        return _summarize(members, primary_step, measure, limit)


def rounds_to_target(evaluations: Sequence[tuple[int, float]], target: float, window: int = 3) -> int | None:
    """Return the first evaluated round at which the mean of the last evaluations reaches the target, or None.

    Args:
        evaluations: (round, accuracy at s*), in the order of rounds.
        target: accuracy in [0, 1].
        window: evaluations in the mean; where there are fewer yet, all of them, so that round 0 can be the answer.
    """
    for end in range(1, len(evaluations) + 1):
        recent = [accuracy for _, accuracy in evaluations[max(0, end - window) : end]]
        if math.fsum(value / len(recent) for value in recent) >= target - _ROUNDING:
            return evaluations[end - 1][0]
    return None


def _summarize(members: Sequence[ClientCurves], primary_step: int, measure: Measure, limit: int) -> GroupCurves:
    weights = np.array([min(client.num_test, limit) for client in members], dtype=np.float64)
    losses = _finite(np.array([client.test_loss for client in members], dtype=np.float64))
    accuracies = _stack([client.test_accuracy for client in members], losses) if measure == "accuracy" else None
    judged, sign = (losses, -1.0) if accuracies is None else (accuracies, 1.0)
    both = judged[np.isfinite(judged[:, [0, primary_step]]).all(axis=1)]
    return GroupCurves(
        num_clients=len(members),
        num_diverged=tuple(int(count) for count in np.isnan(losses).sum(axis=0)),
        measure=measure,
        accuracy=_mean(accuracies),
        accuracy_weighted=_mean(accuracies, weights),
        loss=_tuple(_mean_of_finite(losses)),
        loss_weighted=_tuple(_mean_of_finite(losses, weights)),
        worst_decile=_tuple(sign * _worst_decile(sign * judged)),
        spread=_tuple(_spread(judged)),
        gain=float(sign * (_mean_of_finite(both)[primary_step] - _mean_of_finite(both)[0])),
        area=float(_mean_of_finite(judged).mean()),
        validation_accuracy=_mean(_stack([client.validation_accuracy for client in members])),
        validation_loss=_mean(_stack([client.validation_loss for client in members])),
        metrics=_further(members),
    )


def _further(members: Sequence[ClientCurves]) -> dict[str, Curve]:
    curves = {key: [client.metrics.get(key) for client in members] for client in members for key in client.metrics}
    return {key: mean for key, found in curves.items() if (mean := _mean(_stack(found))) is not None}


def _curve(reply: EvaluateReply, key: str, client_id: str, length: int) -> Curve | None:
    value = reply.metrics.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != length:
        came = f"{len(value)} numbers" if isinstance(value, list) else f"{type(value).__name__} {value!r}"
        raise WireError(
            f"client {client_id!r} answered {key!r} with {came}; expected a list of {length} numbers "
            "(num-adapt-steps + 1); start it with the server's options"
        )
    return tuple(float(number) for number in value)


def _where_finite(curve: Curve | None, loss: Curve | None) -> Curve | None:
    """Return an accuracy curve with NaN where the loss is not finite."""
    if curve is None or loss is None:
        return curve
    return tuple(value if math.isfinite(of) else math.nan for value, of in zip(curve, loss, strict=True))


def _stack(curves: Sequence[Curve | None], of: NDArray[np.float64] | None = None) -> NDArray[np.float64] | None:
    """Return the curves that there are, [n, S+1]; with `of`, all of them, NaN where there is none or `of` is NaN."""
    if of is not None:
        missing = (math.nan,) * of.shape[1]
        rows = np.array([missing if curve is None else curve for curve in curves], dtype=np.float64)
        return _finite(np.where(np.isnan(of), np.nan, rows))
    present = [curve for curve in curves if curve is not None]
    return _finite(np.array(present, dtype=np.float64)) if present else None


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.nan)


def _mean(curves: NDArray[np.float64] | None, weights: NDArray[np.float64] | None = None) -> Curve | None:
    return None if curves is None else _tuple(_mean_of_finite(curves, weights))


def _mean_of_finite(curves: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the mean over the clients that have a number at s; NaN where none has."""
    present = np.isfinite(curves)
    shares = present if weights is None else present * weights[:, None]
    return np.asarray((np.where(present, curves, 0.0) * shares).sum(axis=0) / shares.sum(axis=0))


def _worst_decile(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the ⌈0.1 n⌉ smallest scores at each s; NaN where any client's is."""
    worst = np.sort(scores, axis=0)[: math.ceil(len(scores) / 10)]
    return np.where(np.isnan(scores).any(axis=0), np.nan, worst.mean(axis=0))


def _spread(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation over the clients that have a number at s; 0 for one, NaN for none."""
    means, count = _mean_of_finite(curves), np.isfinite(curves).sum(axis=0)
    squares = np.where(np.isfinite(curves), (curves - means) ** 2, 0.0).sum(axis=0)
    return np.where(count > 0, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


def _tuple(values: NDArray[np.float64]) -> Curve:
    return tuple(float(value) for value in values)
