"""What runs say when they are put side by side: means over seeds, paired differences, targets.

Differences are signed so that positive is better: more accuracy, say, or less loss.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nufed.common.config import MethodConfig, RunConfig
from nufed.common.examples import Group
from nufed.common.methods import DEFINING_OPTIONS, INNER_STEPS
from nufed.common.metric_looks import look_of, sign_of
from nufed.deploy.experiments.finished import FinishedRun, Floats
from nufed.deploy.experiments.statistics import (
    Censored,
    Corrected,
    Differences,
    Grain,
    Interval,
    Statistic,
    censored_median,
    holm,
    spread,
    t_interval,
    two_stage_bootstrap,
    worst_decile,
)
from nufed.server.adaptation_curves import rounds_to_target

TARGET_SHARES = (0.90, 0.95)
ACCURACY_OF_FLOATS = 1e-6
"""Part of a number that means of float32 losses may differ by though nothing else does."""


class Reached(NamedTuple):
    """What a method's runs took to a target, by seed; None for a run that did not reach it.

    Attributes:
        rounds: until then.
        gradients: gradient equivalents of one client in every round.
        num_bytes: sent and received by the server.
    """

    rounds: dict[int, int | None]
    gradients: dict[int, float | None]
    num_bytes: dict[int, float | None]


@dataclass(frozen=True)
class Comparison:
    """Finished runs of several methods in one setting.

    Attributes:
        runs: method -> seed -> run.
        labels: method -> name for readers.
        reference: method that relative targets come from; empty for none.
        baseline: exact method of ν = 1; empty for none.
        target: absolute target; 0 for none.
    """

    runs: Mapping[str, Mapping[int, FinishedRun]]
    labels: Mapping[str, str]
    reference: str = ""
    baseline: str = ""
    target: float = 0.0

    @property
    def first(self) -> FinishedRun:
        """Return any run, for what all have in common."""
        return next(iter(next(iter(self.runs.values())).values()))

    @property
    def measure(self) -> str:
        """Return what all runs are judged by."""
        return self.first.measure

    @property
    def sign(self) -> float:
        """Return 1 where more is better, -1 where less is."""
        return sign_of(self.first.better)

    @property
    def primary_step(self) -> int:
        """Return s*."""
        return self.first.config.evaluation.primary_step

    @property
    def num_steps(self) -> int:
        """Return S."""
        return self.first.config.evaluation.num_adapt_steps

    @property
    def groups(self) -> list[Group]:
        """Return the groups of clients that every run has, new ones first."""
        wanted: list[Group] = ["new", "participating"]
        return [group for group in wanted if all(group in run.groups for run in self._all())]

    @property
    def has_baselines(self) -> bool:
        """Return whether clients have said what the same answer to every example gets."""
        return any(client.baselines for table in self.first.groups.values() for client in table.clients)

    def metric(self, method: str, group: Group, name: str, step: int) -> tuple[float, int]:
        """Return a metric's mean over clients and seeds, and for how many clients of all seeds it is undefined."""
        tables = [run.groups[group] for run in self.runs[method].values()]
        values = [float(table.at(name, step).mean()) for table in tables]
        return float(np.mean(values)), sum(table.num_undefined(name, step) for table in tables)

    @property
    def seeds(self) -> list[int]:
        """Return all seeds."""
        return sorted({seed for runs in self.runs.values() for seed in runs})

    def num_inner_steps(self, method: str) -> int:
        """Return the method's ν."""
        return next(iter(self.runs[method].values())).config.method.num_inner_steps

    def clients(self, method: str, group: Group) -> dict[int, Floats]:
        """Return seed -> [N, S+1], every client's curve."""
        return {seed: run.groups[group].curves(self.measure) for seed, run in sorted(self.runs[method].items())}

    def means(self, method: str, group: Group, step: int) -> dict[int, float]:
        """Return seed -> A(s), mean over clients."""
        return {
            seed: float(run.groups[group].at(self.measure, step).mean())
            for seed, run in sorted(self.runs[method].items())
        }

    def mean_curves(self, method: str, group: Group) -> dict[int, Floats]:
        """Return seed -> A(s), s = 0..S, mean over clients."""
        return {seed: run.groups[group].means(self.measure) for seed, run in sorted(self.runs[method].items())}

    def curve(self, method: str, group: Group) -> list[Interval]:
        """Return A(s), s = 0..S, mean over seeds with intervals."""
        return [self.mean(method, group, step) for step in range(self.num_steps + 1)]

    def mean(self, method: str, group: Group, step: int) -> Interval:
        """Return A(s), mean over seeds with its interval."""
        values = list(self.means(method, group, step).values())
        return t_interval(values, grain=self.grain((method,), group, step))

    def grain(self, methods: Sequence[str], group: Group, step: int) -> Grain:
        """Return how finely the methods' A(s) can differ from seed to seed.

        A share is counted in examples: one of a client's n_i test examples is worth 1 / (N n_i) of the mean over N
        clients, of which the mean over clients and runs is taken. Other numbers are exact to float32.
        """
        tables = [run.groups[group] for method in methods for run in self.runs[method].values()]
        if look_of(self.measure).is_share:
            return Grain(float(np.mean([one_example(table.num_test) for table in tables])))
        levels = [abs(float(table.at(self.measure, step).mean())) for table in tables]
        return Grain(rounding=ACCURACY_OF_FLOATS * max(filter(math.isfinite, levels), default=0.0))

    def differences(self, ours: str, theirs: str, group: Group, step: int) -> Differences:
        """Return seed -> how much better `ours` is than `theirs` after s steps, over the seeds that both have."""
        left, right = self.means(ours, group, step), self.means(theirs, group, step)
        found = {seed: self.sign * (left[seed] - right[seed]) for seed in sorted(left.keys() & right.keys())}
        return Differences(found, self.grain((ours, theirs), group, step))

    def against(self, other: str, group: Group, step: int) -> dict[str, Corrected]:
        """Return every other method's difference to `other`, Holm-corrected for their number."""
        compared = {name: self.differences(name, other, group, step) for name in self.runs if name != other}
        return holm({name: values for name, values in compared.items() if values})

    def best(self, group: Group, step: int) -> str:
        """Return the method with the best mean over seeds; methods that diverged are never it."""

        def score(method: str) -> float:
            value = self.sign * float(np.mean(list(self.means(method, group, step).values())))
            return value if math.isfinite(value) else -math.inf

        return max(self.runs, key=score)

    def over_clients(self, method: str, group: Group, statistic: Statistic) -> Interval:
        """Return a statistic of the clients at s*, mean over seeds, with its two-stage bootstrap interval."""
        runs = [run for _, run in sorted(self.runs[method].items())]
        values = [run.groups[group].at(self.measure, self.primary_step) for run in runs]
        tables = [run.groups[group] for run in runs]
        # of one client, and of the mean over a tenth of them, an example is worth ten times as much as of all
        example = float(np.mean([one_example(table.num_test) for table in tables]))
        grain = 10 * example if look_of(self.measure).is_share else 0.0
        return two_stage_bootstrap(values, statistic, grain=grain)

    def worst_decile(self, method: str, group: Group) -> Interval:
        """Return W(s*), the mean over the worst tenth of the clients."""
        return self._once("worst decile", method, group)

    def worst_mean(self, method: str, group: Group) -> float:
        """Return W(s*) without its interval."""
        tables = [run.groups[group].at(self.measure, self.primary_step) for run in self.runs[method].values()]
        return float(np.mean([self.sign * worst_decile(self.sign * values) for values in tables]))

    def spread(self, method: str, group: Group) -> Interval:
        """Return the standard deviation over clients at s*."""
        return self._once("spread", method, group)

    def _once(self, name: str, method: str, group: Group) -> Interval:
        """Return a statistic over clients, resampled when it is first asked for: tables and figures share it."""
        key = (name, method, group)
        if key not in self._resampled:
            of = spread if name == "spread" else lambda values: self.sign * worst_decile(self.sign * values)
            self._resampled[key] = self.over_clients(method, group, of)
        return self._resampled[key]

    @cached_property
    def _resampled(self) -> dict[tuple[str, str, Group], Interval]:
        return {}

    def targets(self) -> dict[str, float]:
        """Return name -> value of A(s*) that counts as reached.

        90 % and 95 % of the reference's final A(s*), mean over seeds; where less is better, the reference's divided by
        these.
        """
        targets = {}
        if self.reference in self.runs:
            finals = list(self.means(self.reference, "participating", self.primary_step).values())
            for share in TARGET_SHARES:
                final = float(np.mean(finals))
                value = _share_of(final, share, self.sign)
                targets[f"{100 * share:.0f} % of {self.labels[self.reference]}"] = value
        if self.target:
            targets["absolute"] = self.target
        return targets

    def to_target(self, method: str, target: float) -> Reached:
        """Return seed -> rounds until A(s*) of the participating clients reaches the target; costs likewise."""
        rounds: dict[int, int | None] = {}
        gradients: dict[int, float | None] = {}
        num_bytes: dict[int, float | None] = {}
        for seed, run in sorted(self.runs[method].items()):
            progress = run.progress
            at_step = (
                [
                    (int(done), self.sign * float(value))
                    for done, value in zip(progress.rounds, progress.curves[:, self.primary_step], strict=True)
                ]
                if len(progress.rounds)
                else []
            )
            reached = rounds_to_target(at_step, self.sign * target)
            rounds[seed] = reached
            then = None if reached is None else progress.rounds == reached
            gradients[seed] = None if then is None else float(progress.gradients[then][0])
            num_bytes[seed] = None if then is None else float(progress.num_bytes[then][0])
        return Reached(rounds, gradients, num_bytes)

    def censored_to_target(self, method: str, target: float) -> tuple[Censored, Censored, Censored]:
        """Return the medians of `to_target` over seeds: rounds, gradient equivalents, and megabytes."""
        reached = self.to_target(method, target)
        sent = [None if value is None else value / 1e6 for value in reached.num_bytes.values()]
        return (
            censored_median(list(reached.rounds.values())),
            censored_median(list(reached.gradients.values())),
            censored_median(sent),
        )

    def limits(self, method: str) -> tuple[float, float, float]:
        """Return how long a method's runs were: rounds, gradient equivalents, and megabytes."""
        longest = [run.progress for run in self.runs[method].values() if len(run.progress.rounds)]
        if not longest:
            return 0.0, 0.0, 0.0
        ends = [(float(each.rounds[-1]), float(each.gradients[-1]), each.num_bytes[-1] / 1e6) for each in longest]
        rounds, gradients, sent = (max(column) for column in zip(*ends, strict=True))
        return rounds, gradients, float(sent)

    def _all(self) -> list[FinishedRun]:
        return [run for runs in self.runs.values() for run in runs.values()]


def one_example(num_test: NDArray[np.int64]) -> float:
    """Return what one test example is worth of a mean over clients: mean of 1 / (N n_i).

    Args:
        num_test: [N] test examples of each client, n_i.
    """
    return float(np.mean(1 / np.maximum(num_test, 1))) / len(num_test)


def _share_of(final: float, share: float, sign: float) -> float:
    """Return what is reached a little before `final`; numbers below 0, as R² may be, lie closer to it."""
    if final <= 0:
        return final - sign * (1 - share) * abs(final)
    return share * final if sign > 0 else final / share


def exact_methods(comparison: Comparison) -> dict[int, str]:
    """Return ν -> method, of the plain exact methods (and FedAvg for ν = 0): the first of each ν that a suite lists.

    Other objectives are none of these, nor are controls that train with another inner step size than they are tested
    with.
    """
    return _plain_methods(comparison, lambda method: method.estimator == "exact" or not method.num_inner_steps)


def methods_with(comparison: Comparison, estimator: str) -> dict[int, str]:
    """Return ν -> the first plain method with this estimator."""
    return _plain_methods(comparison, lambda method: method.estimator == estimator and method.num_inner_steps > 0)


def _plain_methods(comparison: Comparison, belongs: Callable[[MethodConfig], bool]) -> dict[int, str]:
    defaults = RunConfig().flat()
    same = {*DEFINING_OPTIONS, "federation.server-lr", "federation.aggregation"} - {INNER_STEPS}
    found: dict[int, str] = {}
    for name, runs in comparison.runs.items():
        config = next(iter(runs.values())).config
        flat = config.flat()
        plain = all(flat[key] == defaults[key] for key in same)
        plain = plain and config.evaluation.adapt_lr in (0.0, config.method.inner_lr)
        if plain and belongs(config.method):
            found.setdefault(config.method.num_inner_steps, name)
    return dict(sorted(found.items()))


def compare(runs: Sequence[FinishedRun], labels: Mapping[str, str], **roles: object) -> Comparison:
    """Return runs of one setting side by side, methods in the order of `labels`."""
    by_method: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        by_method.setdefault(run.method, {})[run.seed] = run
    ordered = [name for name in labels if name in by_method] + [name for name in by_method if name not in labels]
    return Comparison(
        {name: by_method[name] for name in ordered},
        {name: labels.get(name) or name for name in ordered},
        **roles,  # type: ignore[arg-type]
    )
