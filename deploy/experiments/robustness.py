"""What each rule of aggregation stands: the tables of a suite whose settings have attacks.

A rule holds where honest clients lose at most three points against the plain mean without attackers, which is judged on
the same clients: those who attack are left out of both.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import mean, stdev

from nufed.common.examples import Group
from nufed.common.metric_looks import look_of
from nufed.deploy.experiments.comparison import Comparison
from nufed.deploy.experiments.finished import FinishedRun
from nufed.deploy.experiments.hypotheses import Graded
from nufed.deploy.experiments.report_tables import TextTable
from nufed.deploy.experiments.story import Story
from nufed.deploy.experiments.wording import without_number

TOLERANCE = 0.03
"""Of the measure: what honest clients may lose under a rule that holds."""

NOTE = (
    "Each cell: honest clients / new clients after s* steps, mean over clients and seeds (± standard deviation over "
    "seeds). Bold: a rule that holds, under which honest clients lose at most three points against the plain mean "
    "without attackers, judged on the same clients. This is what was measured, and no test of significance."
)

_GROUPS: tuple[Group, ...] = ("participating", "new")


def robustness_tables(story: Story) -> Iterator[tuple[str, TextTable]]:
    """Yield title and table: what each rule loses at worst in each setting, then each setting with all attacks.

    Nothing for a story without attackers, or without the settings that they attack.
    """
    honest, reference = honest_settings(story.settings), story.main.reference
    if not honest:
        return
    yield (
        f"The attack that each rule stands least, points of {story.main.measure}",
        worst_table(story.settings, reference),
    )
    for base in honest:
        yield f"Setting `{base.name}`" if base.name else "All attacks", attack_table(base, story.settings, reference)


def honest_settings(settings: Sequence[Graded]) -> list[Graded]:
    """Return the settings without attackers that others were made of."""
    names = {each.attacked.honest for each in settings if each.attacked}
    return [each for each in settings if not each.attacked and each.name in names]


def attack_table(honest: Graded, settings: Sequence[Graded], reference: str) -> TextTable:
    """Return a row for each attack on a setting: honest and new clients under each rule.

    Cells have the measure of the honest clients, behind the stroke that of the new ones, mean over seeds, in percent.

    Args:
        honest: the setting without attackers.
        settings: all.
        reference: the plain mean, whose results without attackers are what the rules are held against.
    """
    labels = honest.comparison.labels
    rows = [["none", "", *(_cell(honest.comparison, name, ()) for name in labels)]]
    shades: dict[tuple[int, int], float] = {}
    for graded in _attacks_on(honest, settings):
        attacked = graded.attacked
        if attacked is None:
            continue
        row = [f"{attacked.name}, {attacked.number}", _clean(honest.comparison, graded.comparison, reference)]
        for column, name in enumerate(labels, start=2):
            row.append(_cell(graded.comparison, name, ()))
            if loss(honest.comparison, graded.comparison, name, reference) <= TOLERANCE:
                shades[len(rows), column] = 1
        rows.append(row)
    return TextTable(["attack, attackers", f"no attack, {labels[reference]}", *labels.values()], rows, shades=shades)


def worst_table(settings: Sequence[Graded], reference: str) -> TextTable:
    """Return a row for each setting: by how many points each rule falls at the attack that it stands least."""
    honest = honest_settings(settings)
    labels = honest[0].comparison.labels
    rows: list[list[str]] = []
    shades: dict[tuple[int, int], float] = {}
    for base in honest:
        row = [base.name]
        for column, name in enumerate(labels, start=1):
            found = {
                f"{each.attacked.name}, {each.attacked.number}": loss(base.comparison, each.comparison, name, reference)
                for each in _attacks_on(base, settings)
                if each.attacked
            }
            worst = max(found, key=lambda attack: found[attack])
            row.append(f"{_points(found[worst])} ({worst})")
            if found[worst] <= TOLERANCE:
                shades[len(rows), column] = 1
        rows.append(row)
    return TextTable(["setting", *labels.values()], rows, shades=shades)


def loss(honest: Comparison, attacked: Comparison, method: str, reference: str) -> float:
    """Return how much worse honest clients fare than without attackers, mean over seeds; infinite without results."""
    if method not in attacked.runs:
        return math.inf
    losses = []
    for seed, run in attacked.runs[method].items():
        if (before := honest.runs[reference].get(seed)) is None:
            return math.inf
        clients = run.groups["participating"].client_ids
        after = _mean(run, "participating", clients, honest)
        losses.append(honest.sign * (_mean(before, "participating", clients, honest) - after))
    worst = mean(losses)
    return worst if math.isfinite(worst) else math.inf


def _attacks_on(honest: Graded, settings: Sequence[Graded]) -> list[Graded]:
    return [each for each in settings if each.attacked and each.attacked.honest == honest.name]


def _clean(honest: Comparison, attacked: Comparison, reference: str) -> str:
    """Return what the plain mean without attackers gives the clients that are honest under an attack."""
    any_rule = next(iter(attacked.runs.values()))
    return _cell(honest, reference, next(iter(any_rule.values())).groups["participating"].client_ids)


def _cell(comparison: Comparison, method: str, clients: Sequence[str]) -> str:
    """Return `97.1 / 95.0`, with ± the standard deviation over seeds where there are several."""
    if method not in comparison.runs:
        return without_number(comparison.measure)
    parts = []
    for group in _GROUPS:
        chosen = clients if group == "participating" else ()
        runs = [run for run in comparison.runs[method].values() if group in run.groups]
        scale = 100 if look_of(comparison.measure).is_share else 1
        values = [scale * _mean(run, group, chosen, comparison) for run in runs]
        if values and all(map(math.isfinite, values)):
            digits = ".1f" if scale == 100 else ".3g"
            spread = f" ± {stdev(values):{digits}}" if len(values) > 1 else ""
            parts.append(f"{mean(values):{digits}}{spread}")
        elif values:
            parts.append(without_number(comparison.measure))
    return " / ".join(parts)


def _mean(run: FinishedRun, group: Group, clients: Sequence[str], comparison: Comparison) -> float:
    """Return the mean of the measure at s* over some of a group's clients; over all of them where none is named."""
    table = run.groups[group]
    values = table.curves(comparison.measure)[:, comparison.primary_step]
    kept = [value for name, value in zip(table.client_ids, values, strict=True) if not clients or name in clients]
    return float(mean(kept))


def _points(value: float) -> str:
    return "no result" if math.isinf(value) else f"{-100 * value:+.1f}"
