"""The statements H1 to H5 (docs/results.md), judged on a suite's results.

A statement about several ν is supported only if every one of its comparisons is, contradicted if one is significantly
the other way, and undecided otherwise; intervals are paired over seeds and Holm-corrected over the comparisons.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nufed.common.examples import Group
from nufed.common.metric_looks import look_of
from nufed.deploy.experiments.comparison import ACCURACY_OF_FLOATS, Comparison, exact_methods, methods_with
from nufed.deploy.experiments.statistics import MIN_SEEDS, Corrected, Differences, Grain, holm
from nufed.deploy.experiments.wording import no_verdict

Verdict = str
"""`supported`, `contradicted`, `undecided`, `not tested`, or `no verdict: 2 seeds`, say."""
SMALL = 0.1
"""ναL up to which ν steps of α are expected to be one step of να."""
NEGLIGIBLE = 0.01
"""Share, such as an accuracy, or part of the control's loss, within which a difference has vanished."""


@dataclass(frozen=True)
class Finding:
    """One statement with its verdict.

    Attributes:
        name: H1 to H5.
        statement: what is claimed.
        verdict: whether the results bear it out.
        evidence: comparison -> difference; positive speaks for the statement.
        note: what a reader must know beside.
    """

    name: str
    statement: str
    verdict: Verdict
    evidence: Mapping[str, Corrected]
    note: str = ""


@dataclass(frozen=True)
class Attacked:
    """Who attacks in a setting.

    Attributes:
        name: of the attack.
        number: attackers.
        honest: name of the setting without them.
    """

    name: str
    number: int
    honest: str


@dataclass(frozen=True)
class Graded:
    """A comparison with how heterogeneous its setting is, L of its problem, or 0 if unknown, and who attacks."""

    name: str
    strength: float
    comparison: Comparison
    smoothness: float = 0.0
    attacked: Attacked | None = None


def judge(settings: Sequence[Graded]) -> list[Finding]:
    """Return the findings of a suite, whose settings have the same methods; all but H3 are about the last one."""
    main = settings[-1].comparison
    return [_h1(main), _h2(main), _h3a(settings), _h3b(settings), _h4(main), _h5(main)]


def _h1(comparison: Comparison) -> Finding:
    claim = "After s = ν steps, exact ν > 1 beats ν = 1 on participating and on new clients."
    methods = exact_methods(comparison)
    differences = {
        f"{comparison.labels[name]} - {comparison.labels[methods[1]]}, s = {nu}, {group}": comparison.differences(
            name, methods[1], group, nu
        )
        for nu, name in _larger(methods, comparison)
        for group in comparison.groups
    }
    return _finding("H1", claim, differences)


def _h2(comparison: Comparison) -> Finding:
    claim = "Exact ν > 1 loses against ν = 1 at s = 0 and where s < ν/2."
    methods = exact_methods(comparison)
    differences = {}
    for nu, name in _larger(methods, comparison):
        for step in sorted({0, math.ceil(nu / 2) - 1}):
            for group in comparison.groups:
                values = comparison.differences(methods[1], name, group, step)
                differences[f"{comparison.labels[methods[1]]} - {comparison.labels[name]}, s = {step}, {group}"] = (
                    values
                )
    return _finding("H2", claim, differences)


def _h3a(settings: Sequence[Graded]) -> Finding:
    main = settings[-1].comparison
    claim = "The advantage of ν > 1 at s = ν grows with heterogeneity."
    lowest, highest = min(settings, key=lambda each: each.strength), max(settings, key=lambda each: each.strength)
    differences = {}
    if highest.strength > lowest.strength:
        for nu, name in _larger(exact_methods(main), main):
            baseline = exact_methods(main)[1]
            for group in main.groups:
                strong = highest.comparison.differences(name, baseline, group, nu)
                weak = lowest.comparison.differences(name, baseline, group, nu)
                key = f"gap of ν = {nu} at {highest.name or 'strong'} - gap at {lowest.name or 'weak'}, {group}"
                values = {seed: strong[seed] - weak[seed] for seed in sorted(strong.keys() & weak.keys())}
                differences[key] = Differences(values, _coarser(strong.grain, weak.grain))
    return _finding("H3a", claim, differences, "Tested where a suite has settings of two strengths.")


@dataclass(frozen=True)
class _Control:
    """An exact ν with its control (ν = 1, α' = να) in one setting.

    Attributes:
        setting: where both were run.
        nu: ν.
        reach: να.
        method: name of the exact method.
        control: name of its control.
    """

    setting: Graded
    nu: int
    reach: float
    method: str
    control: str

    @property
    def is_small(self) -> bool:
        """Return whether ναL is known to be small."""
        return 0 < self.setting.smoothness * self.reach <= SMALL

    def note(self) -> str:
        """Return να, and ναL if L is known."""
        where = f" ({self.setting.name})" if self.setting.name else ""
        if not self.setting.smoothness:
            return f"να = {self.reach:g}{where}, taken as large because L is not known"
        return f"να = {self.reach:g}, ναL = {self.setting.smoothness * self.reach:.2g}{where}"

    def leads(self) -> dict[str, Differences]:
        """Return by how much ν is ahead at s = ν; where ναL is small, a loss as a share of the control's."""
        comparison, found = self.setting.comparison, {}
        for group in comparison.groups:
            values = comparison.differences(self.method, self.control, group, self.nu)
            if not values:  # no seed that both finished
                continue
            if self.is_small and not look_of(comparison.measure).is_share:
                losses = comparison.means(self.control, group, self.nu)
                shares = {seed: value / abs(losses[seed]) for seed, value in values.items()}
                values = Differences(shares, Grain(rounding=ACCURACY_OF_FLOATS))
            names = f"{comparison.labels[self.method]} - {comparison.labels[self.control]}"
            where = f", {self.setting.name}" if self.is_small and self.setting.name else ""
            found[f"{names}, s = {self.nu}, {group}{where}"] = values
        return found


def _h3b(settings: Sequence[Graded]) -> Finding:
    """Judge the first half on every control of small ναL in any setting, the second on the others in the main one."""
    claim = f"The advantage over (ν = 1, α' = να) vanishes where ναL ≤ {SMALL:g}, and is there where ναL is larger."
    controls = [control for setting in settings for control in _controls(setting)]
    small = [control for control in controls if control.is_small]
    large = [control for control in controls if not control.is_small and control.setting is settings[-1]]
    vanished, present = _all_leads(small), _all_leads(large)
    evidence = holm({**vanished, **present})
    if not evidence:
        return Finding("H3b", claim, "not tested", {}, "The suite has no control (ν = 1, α' = να).")
    verdicts = {
        _seeds_short({key: evidence[key] for key in half}) or judge_half({key: evidence[key] for key in half})
        for half, judge_half in ((vanished, _vanishing), (present, _verdict))
        if half
    }
    notes = [control.note() for control in (*small, *large)]
    if small:
        measure = settings[-1].comparison.measure
        of = measure if look_of(measure).is_share else f"the control's {measure}"
        notes.append(f"vanished: within {NEGLIGIBLE:g} of {of}")
    return Finding("H3b", claim, _joint(verdicts), evidence, "; ".join(notes) + ".")


def _controls(setting: Graded) -> list[_Control]:
    comparison, found = setting.comparison, []
    for nu, name in _larger(exact_methods(comparison), comparison):
        alpha = next(iter(comparison.runs[name].values())).config.method.inner_lr
        for control, runs in comparison.runs.items():
            method = next(iter(runs.values())).config.method
            is_control = method.num_inner_steps == 1 and math.isclose(method.inner_lr, nu * alpha, rel_tol=1e-6)
            if is_control and control != comparison.baseline:
                found.append(_Control(setting, nu, nu * alpha, name, control))
    return found


def _all_leads(controls: Sequence[_Control]) -> dict[str, Differences]:
    return {key: values for control in controls for key, values in control.leads().items()}


def _vanishing(evidence: Mapping[str, Corrected]) -> Verdict:
    intervals = [each.interval for each in evidence.values()]
    if any(each.low > NEGLIGIBLE or each.high < -NEGLIGIBLE for each in intervals):
        return "contradicted"
    negligible = all(each.low >= -NEGLIGIBLE and each.high <= NEGLIGIBLE for each in intervals)
    return "supported" if negligible else "undecided"


def _joint(verdicts: Collection[Verdict]) -> Verdict:
    """Return the verdict on a statement from those on its halves."""
    if "contradicted" in verdicts:
        return "contradicted"
    if short := [verdict for verdict in verdicts if verdict.startswith("no verdict")]:
        return short[0]
    return "undecided" if "undecided" in verdicts else "supported"


def _h4(comparison: Comparison) -> Finding:
    claim = "First-order ν adapts like exact ν/2 rather than like exact ν (root mean square over s of the difference)."
    exact, first_order = exact_methods(comparison), methods_with(comparison, "first-order")
    differences = {}
    for nu, name in first_order.items():
        if nu % 2 or nu not in exact or nu // 2 not in exact:
            continue
        for group in comparison.groups:
            far = _distances(comparison, name, exact[nu], group)
            near = _distances(comparison, name, exact[nu // 2], group)
            key = f"distance of FO({nu}) to exact({nu}) - to exact({nu // 2}), {group}"
            values = {seed: far[seed] - near[seed] for seed in sorted(far.keys() & near.keys())}
            grain = comparison.grain((name, exact[nu], exact[nu // 2]), group, comparison.primary_step)
            differences[key] = Differences(values, grain)
    return _finding("H4", claim, differences, "Needs FO(ν), exact(ν) and exact(ν/2) in one suite.")


def _distances(comparison: Comparison, ours: str, theirs: str, group: Group) -> dict[int, float]:
    left, right = comparison.mean_curves(ours, group), comparison.mean_curves(theirs, group)
    return {seed: float(np.sqrt(np.mean((left[seed] - right[seed]) ** 2))) for seed in left.keys() & right.keys()}


def _h5(comparison: Comparison) -> Finding:
    claim = "With β tuned for each ν, rounds to target do not grow with ν."
    methods, targets = exact_methods(comparison), comparison.targets()
    if 1 not in methods or not targets:
        return Finding("H5", claim, "not tested", {}, "Needs ν = 1, a larger ν and a target.")
    interval = comparison.first.config.evaluation.interval
    note = (
        f"Rounds saved against ν = 1; a run that did not get there counts as one evaluation ({interval} rounds) more."
    )
    differences = {}
    for target_name, target in targets.items():
        theirs = _rounds(comparison, methods[1], target)
        for nu, name in _larger(methods, comparison):
            ours = _rounds(comparison, name, target)
            saved = {seed: theirs[seed] - ours[seed] for seed in sorted(ours.keys() & theirs)}
            # rounds are counted in evaluations: the same number on every seed is what so coarse a count looks like
            differences[f"ν = {nu}, {target_name}"] = Differences(saved, Grain(example=interval))
    evidence = holm({name: values for name, values in differences.items() if values})
    if not evidence:
        return Finding("H5", claim, "not tested", {}, note)
    if verdict := _seeds_short(evidence):
        pass
    elif any(each.interval.high < 0 for each in evidence.values()):
        verdict = "contradicted"
    elif all(each.interval.low >= -interval for each in evidence.values()):
        verdict = "supported"
    else:
        verdict = "undecided"
    return Finding("H5", claim, verdict, evidence, note)


def _rounds(comparison: Comparison, method: str, target: float) -> dict[int, float]:
    runs = comparison.runs[method]
    return {
        seed: float(runs[seed].config.federation.num_rounds + runs[seed].config.evaluation.interval)
        if reached is None
        else float(reached)
        for seed, reached in comparison.to_target(method, target).rounds.items()
    }


def _larger(methods: Mapping[int, str], comparison: Comparison) -> list[tuple[int, str]]:
    """Return the exact methods of ν > 1 whose ν is on the curve, if there is one of ν = 1 to compare them with."""
    return [(nu, name) for nu, name in methods.items() if 1 < nu <= comparison.num_steps and 1 in methods]


def _finding(name: str, claim: str, differences: Mapping[str, Mapping[int, float]], note: str = "") -> Finding:
    present = {key: values for key, values in differences.items() if values}
    if not present:
        return Finding(name, claim, "not tested", {}, note or "Needs exact ν = 1 and a larger ν.")
    evidence = holm(present)
    return Finding(name, claim, _verdict(evidence), evidence)


def _coarser(first: Grain, second: Grain) -> Grain:
    """Return the grain of the difference of two numbers."""
    return Grain(max(first.example, second.example), max(first.rounding, second.rounding))


def _seeds_short(evidence: Mapping[str, Corrected]) -> Verdict:
    """Return `no verdict: 2 seeds` where no comparison has enough seeds; empty else."""
    most = max(each.interval.num for each in evidence.values())
    return no_verdict(most) if most < MIN_SEEDS else ""


def _verdict(evidence: Mapping[str, Corrected]) -> Verdict:
    if short := _seeds_short(evidence):
        return short
    if _one_is_negative(evidence):
        return "contradicted"
    return "supported" if all(each.interval.low > 0 for each in evidence.values()) else "undecided"


def _one_is_negative(evidence: Mapping[str, Corrected]) -> bool:
    return any(each.interval.high < 0 for each in evidence.values())
