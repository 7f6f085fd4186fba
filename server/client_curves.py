"""What one client has answered to an evaluation: its curves over s = 0..S, and what they are compared with."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from nufed.common.errors import WireError
from nufed.common.examples import Group
from nufed.common.message_schema import BASELINE, CONFUSION, INTERVAL, NUM_EXAMPLES, CurveShape
from nufed.common.metric_looks import LOSS
from nufed.common.metrics import SPLITS
from nufed.common.wire import ClientDescription, EvaluateReply
from nufed.server.curve_means import Curve
from nufed.server.shot_curves import ShotCurves, shots_of_reply
from nufed.strategy.results import EvaluationResult

ACCURACY = "accuracy"
_OWN_FIELDS = (LOSS, ACCURACY)


@dataclass(frozen=True, kw_only=True)
class ClientCurves:
    """One client's curves: element s is after s fine-tuning steps on its support split.

    A client has diverged at s if its test loss there is not finite. Its metrics are NaN then: of outputs that are NaN,
    the largest is the first, so that what was counted is how many examples belong to class 0. Elsewhere a metric that
    is NaN is undefined: its test examples are of one class, say.

    Attributes:
        client_id: stable name.
        group: `participating` or `new`.
        num_support: examples that were adapted on.
        num_validation: examples of the validation split.
        num_test: examples that were judged on.
        test_loss: mean over test examples, [S+1].
        test_accuracy: share of test examples, in [0, 1], [S+1]; None where the run is not judged by it.
        validation_loss: as `test_loss` on the validation split; None if it is empty.
        validation_accuracy: as `test_accuracy` on the validation split; None if it is empty.
        metrics: curves of the other metrics (`nufed.common.metrics`), e.g. `test-auroc`.
        baselines: metric, or `loss` -> what the same answer to every example gets on the test split.
        intervals: metric -> 95 % interval of its value after s* steps, where it was found on few examples.
        shots: after fine-tuning on so many support examples instead of all.
        confusion: C² test examples by class (row) and the class they were taken for after s* steps; mostly empty.
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
    baselines: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shots: Mapping[int, ShotCurves] = field(default_factory=dict)
    confusion: tuple[int, ...] = ()

    @classmethod
    def from_reply(
        cls,
        description: ClientDescription,
        reply: EvaluateReply,
        *,
        num_adapt_steps: int,
        measure: str = LOSS,
        names: Iterable[str] = (),
    ) -> "ClientCurves":
        """Return the curves that a client answered with.

        Args:
            description: who the client is.
            reply: what it answered.
            num_adapt_steps: S; every curve must have S + 1 elements.
            measure: what the task is judged by, which the reply must have.
            names: further metrics of the run, which the reply may have.

        Raises:
            WireError: a curve that is needed is missing, or a curve has another length or is no list.
        """
        length = num_adapt_steps + 1
        known = dict.fromkeys([*_OWN_FIELDS, measure, *names])
        keys = [f"{split}-{name}" for name in known for split in SPLITS]
        curves = {key: _curve(reply, key, description.client_id, length) for key in keys}
        test_loss = curves[f"test-{LOSS}"]
        if test_loss is None or curves[f"test-{measure}"] is None:
            missing = f"test-{LOSS if test_loss is None else measure}"
            raise WireError(
                f"client {description.client_id!r} answered without {missing!r}; expected a list of {length} numbers; "
                "the client runs another app or version"
            )
        losses = {split: curves[f"{split}-{LOSS}"] for split in SPLITS}
        shown = {key: _where_finite(curve, losses[key.partition("-")[0]]) for key, curve in curves.items()}
        own = {f"{split}-{name}" for name in _OWN_FIELDS for split in SPLITS}
        return cls(
            client_id=description.client_id,
            group=description.group,
            num_support=description.num_support,
            num_validation=description.num_validation,
            num_test=description.num_test,
            test_loss=test_loss,
            test_accuracy=shown[f"test-{ACCURACY}"],
            validation_loss=losses["validation"],
            validation_accuracy=shown[f"validation-{ACCURACY}"],
            metrics={key: curve for key, curve in shown.items() if curve is not None and key not in own},
            baselines=_baselines(reply, known),
            intervals=_intervals(reply, known),
            shots=shots_of_reply(reply.metrics),
            confusion=_counts(reply),
        )

    def curve(self, measure: str, split: str = "test") -> Curve | None:
        """Return the curve of a metric or of the loss; None where there is none."""
        if measure in _OWN_FIELDS:
            found: Curve | None = getattr(self, f"{split}_{measure}")
            return found
        return self.metrics.get(f"{split}-{measure}")

    def has_diverged(self, step: int) -> bool:
        """Return whether fine-tuning has left the finite numbers after `step` steps."""
        return not math.isfinite(self.test_loss[step])


def curves_of_replies(
    result: EvaluationResult, described: Mapping[str, ClientDescription], shape: CurveShape
) -> tuple[list[ClientCurves], dict[str, str]]:
    """Return the curves of the clients that answered with curves, and why the others did not, by client id.

    Args:
        result: of an evaluation.
        described: the clients that have said who they are, by client id.
        shape: what the curves must be.
    """
    curves, problems, steps = [], dict(result.problems), shape.length - 1
    for client_id, metrics in result.client_metrics.items():
        reply = EvaluateReply(int(cast("int", metrics[NUM_EXAMPLES])), metrics)
        try:
            own = ClientCurves.from_reply(
                described[client_id], reply, num_adapt_steps=steps, measure=shape.primary, names=shape.looks
            )
            curves.append(own)
        except WireError as error:
            problems[client_id] = str(error)
    return curves, problems


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
    """Return a metric's curve with NaN where the loss is not finite."""
    if curve is None or loss is None or curve is loss:
        return curve
    return tuple(value if math.isfinite(of) else math.nan for value, of in zip(curve, loss, strict=True))


def _baselines(reply: EvaluateReply, names: Iterable[str]) -> dict[str, float]:
    found = {name: reply.metrics.get(BASELINE + name) for name in names}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _intervals(reply: EvaluateReply, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    found = {name: reply.metrics.get(INTERVAL + name) for name in names}
    return {name: (float(ends[0]), float(ends[1])) for name, ends in found.items() if isinstance(ends, list)}


def _counts(reply: EvaluateReply) -> tuple[int, ...]:
    counts = reply.metrics.get(CONFUSION)
    return tuple(int(count) for count in counts) if isinstance(counts, list) else ()
