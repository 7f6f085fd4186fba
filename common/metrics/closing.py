"""What a client's final numbers are compared with: the same answer to every example; and how sure they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nufed.common.data.target_scaling import TargetScaling
from nufed.common.examples import TaskInfo
from nufed.common.metric_looks import LOSS
from nufed.common.metrics.baselines import constant_outputs
from nufed.common.metrics.classes import confusion
from nufed.common.metrics.intervals import FEW, Interval, bootstrap, wilson
from nufed.common.metrics.judged import Judged, judged
from nufed.common.metrics.judging import Judging, compute_all, ignored_target, in_units
from nufed.common.metrics.registry import METRICS, Compute
from nufed.common.tasks import find_task


@dataclass(frozen=True)
class Answers:
    """What a model has answered to a client's test examples.

    Attributes:
        task: what outputs and targets are.
        outputs: [N, ...] after s* steps.
        targets: [N, ...], N ≥ 1, as they are trained on.
        scaling: how targets were scaled; None where they were not.
        seed: the run's, and what makes the resamples this client's.
    """

    task: TaskInfo
    outputs: Tensor
    targets: Any
    scaling: TargetScaling | None
    seed: tuple[int | str, ...]

    def losses(self, outputs: Tensor) -> Tensor:
        """Return each example's loss, [N]."""
        return find_task(self.task).losses(outputs, self.targets)

    def judged(self, outputs: Tensor) -> Judged:
        """Return outputs beside the targets, in the units that these came in."""
        shown, targets = in_units(outputs, self.scaling), in_units(self.targets, self.scaling)
        return judged(shown, targets, ignored_target(self.task))


def baselines_of(by: Judging, answers: Answers, support: Any) -> dict[str, float]:
    """Return for the loss and each metric what the same answer to every example gets; empty for one's own task.

    Args:
        by: what the run is judged by.
        answers: the test examples; its outputs say shape and type alone.
        support: targets of the support split, from which the answer is taken; empty for none.
    """
    if not isinstance(support, Tensor) or not isinstance(answers.targets, Tensor) or len(support) == 0:
        return {}
    found: dict[str, float] = {}
    for median in (False, True):
        one = constant_outputs(answers.task, support, ignored_target(answers.task), median=median)
        if one is None:
            return {}
        outputs = one.to(answers.outputs.dtype).expand(answers.outputs.shape)
        if not median:
            found[LOSS] = float(answers.losses(outputs).double().mean())
        names = {name: each for name, each in by.computes.items() if median == name.startswith("mae")}
        found |= {name: float(value) for name, value in compute_all(names, answers.judged(outputs)).items()}
    return found


def intervals_of(by: Judging, answers: Answers) -> dict[str, Interval]:
    """Return 95 % intervals of what was found on fewer than 100 examples: of shares, and of the primary metric.

    Shares of independent trials have Wilson's, the primary metric, where it is none, one by the bootstrap.
    """
    found: dict[str, Interval] = {}
    for name in by.computes:
        trials = METRICS[name].trials.get(answers.task.kind) if name in METRICS else None
        if trials is None:
            continue
        results = trials(answers.outputs, answers.targets)
        number = int((results >= 0).sum())
        if 0 < number < FEW:
            found[name] = wilson(int((results == 1).sum()), number)
    primary, few = by.primary, len(answers.outputs) < FEW and isinstance(answers.targets, Tensor)
    if primary in found or not few or (primary in METRICS and answers.task.kind in METRICS[primary].trials):
        return found
    metric = partial(_resampled, answers, by.computes.get(primary))
    size = answers.outputs[0].numel()
    interval = bootstrap(metric, len(answers.outputs), size, *answers.seed, primary)
    return found if interval is None else {**found, primary: interval}


def counts_of(answers: Answers) -> list[int]:
    """Return C² counts of test examples by class (row) and the class that they were taken for."""
    return [int(count) for count in confusion(answers.outputs, answers.targets).flatten()]


def closing_numbers(by: Judging, answers: Answers, support: Any, *, counts: bool) -> Mapping[str, Any]:
    """Return what a client reports beside its curves, by the names that messages have for it."""
    from nufed.common.message_schema import BASELINE, CONFUSION, INTERVAL

    said: dict[str, Any] = {BASELINE + name: value for name, value in baselines_of(by, answers, support).items()}
    if not bool(answers.outputs.isnan().any()):
        said |= {INTERVAL + name: list(ends) for name, ends in intervals_of(by, answers).items()}
        said |= {CONFUSION: counts_of(answers)} if counts else {}
    return said


def _resampled(answers: Answers, compute: Compute | None, rows: Tensor) -> Tensor:
    """Return a metric, or the loss for None, on resamples [B, N] of the test examples, [B]."""
    rows = rows.to(answers.outputs.device)
    if compute is None:
        return answers.losses(answers.outputs)[rows].double().mean(-1)
    of = answers.judged(answers.outputs)
    counted = torch.ones(rows.shape, dtype=torch.bool, device=rows.device)
    return compute(Judged(of.outputs[rows], of.targets[rows], counted, of.ignored))
