"""The tables of a report as rows of text, which HTML and Markdown dress each in its way."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nufed.common.config import RunConfig
from nufed.common.examples import Group
from nufed.common.metric_looks import LOSS
from nufed.deploy.experiments.comparison import Comparison, exact_methods
from nufed.deploy.experiments.hypotheses import Finding
from nufed.deploy.experiments.statistics import Corrected
from nufed.deploy.experiments.story import GROUP_NAMES, Story, winner
from nufed.deploy.experiments.tuning import Choice
from nufed.deploy.experiments.wording import difference, estimate, judgement, number, p_value, span
from nufed.server.client_curves import ClientCurves

MOST_CLIENTS = 50
"""Rows of a table of clients."""
FEW_BEST = 10
"""How many of them are the best clients, where there are more."""


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        header: names of the columns; the first column names the rows.
        rows: cells.
        strong: row numbers to stand out.
        shades: (row, column) -> 0 to 1, how dark a cell is.
    """

    header: list[str]
    rows: list[list[str]]
    strong: frozenset[int] = frozenset()
    shades: Mapping[tuple[int, int], float] = field(default_factory=dict)


def standing_table(comparison: Comparison, group: Group) -> TextTable:
    """Return how every method does at s*: A(s*), against the best, A(0), worst tenth and spread, best method first."""
    step, measure = comparison.primary_step, comparison.measure
    best = winner(comparison, group)
    means = {name: comparison.mean(name, group, step) for name in comparison.runs}

    def rank(name: str) -> float:
        mean = means[name].mean
        return -comparison.sign * mean if math.isfinite(mean) else math.inf

    rows = []
    for name in sorted(means, key=rank):
        before = comparison.mean(name, group, 0)
        behind = best.against.get(name)
        rows.append(
            [
                comparison.labels[name],
                estimate(means[name], measure),
                "best" if behind is None else f"{difference(behind.turned().interval, measure)}",
                "" if behind is None else p_value(behind.p_adjusted),
                number(before.mean, measure),
                span(comparison.worst_decile(name, group), measure),
                span(comparison.spread(name, group), measure),
            ]
        )
    header = [
        "method",
        f"{measure}, s = {step}",
        "against the best",
        "p (Holm)",
        "s = 0",
        "worst tenth",
        "sd over clients",
    ]
    return TextTable(header, rows, frozenset({0}))


def metrics_table(comparison: Comparison, group: Group) -> TextTable:
    """Return every method's metrics at s*, mean over clients and seeds, above what the same answer to all gets."""
    step, names = comparison.primary_step, [comparison.measure, *comparison.first.metrics]
    if comparison.measure != LOSS:
        names.append(LOSS)
    rows = []
    for method in comparison.runs:
        found = [comparison.metric(method, group, name, step) for name in names]
        cells = [
            number(value, name) + (f" ({missing} undefined)" if missing else "")
            for name, (value, missing) in zip(names, found, strict=True)
        ]
        rows.append([comparison.labels[method], *cells])
    if comparison.has_baselines:
        table = comparison.first.groups[group]
        levels = [table.baseline(name) for name in names]
        cells = [number(level, name) if math.isfinite(level) else "" for level, name in zip(levels, names, strict=True)]
        rows.append(["the same answer", *cells])
    return TextTable(["method", *names], rows)


def clients_table(comparison: Comparison) -> TextTable | None:
    """Return each client's numbers before and at s* with 95 % intervals, worst first, of a single run; else None.

    Of many clients, the worst and a few of the best.
    """
    run, step = comparison.first, comparison.primary_step
    if len(comparison.runs) > 1 or len(comparison.seeds) > 1:
        return None
    clients = _ordered_clients(comparison)
    shown = clients if len(clients) <= MOST_CLIENTS else clients[: MOST_CLIENTS - FEW_BEST] + clients[-FEW_BEST:]
    names, rows = [run.measure, *run.metrics], []
    for client in shown:
        before, cells = client.curve(run.measure), []
        for name in names:
            curve, ends = client.curve(name), client.intervals.get(name)
            interval = f" [{number(ends[0], name)}, {number(ends[1], name)}]" if ends else ""
            cells.append(number(curve[step], name) + interval if curve else "")
        baseline = client.baselines.get(run.measure, math.nan)
        same = number(baseline, run.measure) if math.isfinite(baseline) else ""
        first = number(before[0], run.measure) if before else ""
        rows.append([client.client_id, client.group, str(client.num_test), first, *cells, same])
    header = ["client", "group", "test examples", f"{run.measure}, s = 0"]
    header += [f"{name}, s = {step}" for name in names]
    return TextTable([*header, "the same answer"], rows)


def left_out_clients(comparison: Comparison) -> str:
    """Return that a table of a single run's clients does not show all of them, and where they are; empty if it does."""
    total = sum(len(table.clients) for table in comparison.first.groups.values())
    if total <= MOST_CLIENTS:
        return ""
    worst = MOST_CLIENTS - FEW_BEST
    return f"Of {total} clients the {worst} worst and the {FEW_BEST} best; all are in clients.csv."


def _ordered_clients(comparison: Comparison) -> list[ClientCurves]:
    """Return the first run's clients, the worst first: those that diverged, then by the measure at s*."""
    run, step = comparison.first, comparison.primary_step

    def rank(client: ClientCurves) -> tuple[float, str]:
        curve = client.curve(run.measure)
        value = comparison.sign * curve[step] if curve else math.nan
        return (value if math.isfinite(value) else -math.inf, client.client_id)

    return sorted((client for table in run.groups.values() for client in table.clients), key=rank)


def matrix_table(comparison: Comparison, group: Group) -> TextTable:
    """Return A(s) of the exact methods: a row for each trained ν, a column for each tested s; best of a column bold."""
    methods, measure = exact_methods(comparison), comparison.measure
    tested = list(range(comparison.num_steps + 1))
    values = [[comparison.mean(name, group, step).mean for step in tested] for name in methods.values()]
    shades = {}
    for column in range(len(tested)):
        ordered = [comparison.sign * row[column] for row in values]
        low, high = min(ordered), max(ordered)
        for row, value in enumerate(ordered):
            if math.isfinite(high - low) and high > low:
                shades[row, column + 1] = (value - low) / (high - low)
    rows = [[f"ν = {nu}", *(number(value, measure) for value in row)] for nu, row in zip(methods, values, strict=True)]
    return TextTable(["trained ν", *(f"s = {step}" for step in tested)], rows, shades=shades)


def target_table(comparison: Comparison) -> TextTable:
    """Return rounds, gradient equivalents and megabytes to each target: median over seeds, with range."""
    targets, measure = comparison.targets(), comparison.measure
    header = ["method"]
    for name, value in targets.items():
        header += [f"rounds to {number(value, measure)} ({name})", "gradients", "MB"]
    rows = []
    for method in comparison.runs:
        row, limits = [comparison.labels[method]], comparison.limits(method)
        for value in targets.values():
            found = comparison.censored_to_target(method, value)
            forms = ("{:.0f}", "{:,.0f}", "{:,.3g}")
            shown = [each.text(limit, form) for each, limit, form in zip(found, limits, forms, strict=True)]
            row += shown if limits[0] else ["no rounds", "", ""]
        rows.append(row)
    return TextTable(header, rows)


def differences_table(comparison: Comparison, other: str) -> TextTable:
    """Return every method's paired difference to `other` at s*, Holm-corrected, for each group of clients."""
    found = {group: comparison.against(other, group, comparison.primary_step) for group in comparison.groups}
    header = ["method"]
    for group in found:
        header += [GROUP_NAMES[group], "p (Holm)", "verdict"]
    rows = []
    for method in comparison.runs:
        if method == other:
            continue
        row = [comparison.labels[method]]
        for each in found.values():
            corrected = each[method]
            row += [
                difference(corrected.interval, comparison.measure),
                p_value(corrected.p_adjusted),
                judgement(corrected),
            ]
        rows.append(row)
    return TextTable(header, rows)


def evidence_table(finding: Finding, comparison: Comparison) -> TextTable:
    """Return the comparisons behind a finding; positive differences speak for the statement."""
    rows = [
        [name, _evidence(finding, corrected, comparison), p_value(corrected.p_adjusted)]
        for name, corrected in finding.evidence.items()
    ]
    return TextTable(["comparison", "difference", "p (Holm)"], rows)


def tuning_table(story: Story) -> TextTable:
    """Return the chosen step sizes, from how many points, and which lie at an edge of the grid."""
    rows = [_choice_row(choice) for choice in story.choices.values()]
    return TextTable(["method", "chosen", "points", "validation score", "at the edge of the grid"], rows)


def settings_table(configs: Mapping[str, RunConfig], labels: Mapping[str, str]) -> tuple[TextTable, TextTable]:
    """Return the options in which methods differ, and those that all share."""
    flats = {name: config.flat() for name, config in configs.items()}
    first = next(iter(flats.values()))
    hidden = {"seed"}
    different = [key for key in first if key not in hidden and len({str(flat[key]) for flat in flats.values()}) > 1]
    rows = [[labels[name], *(str(flat[key]) for key in different)] for name, flat in flats.items()]
    shared = [[key, str(value)] for key, value in first.items() if key not in different and key not in hidden]
    return TextTable(["method", *different], rows), TextTable(["option", "value"], shared)


def _choice_row(choice: Choice) -> list[str]:
    chosen = ", ".join(f"{key} = {value}" for key, value in choice.point.items()) or "nothing to choose"
    scores = [each.score for each in choice.scored if each.point == choice.point]
    score = f"{scores[0]:.4g}" if scores else ""
    return [choice.entry, chosen, str(max(1, len(choice.scored))), score, ", ".join(choice.at_edge) or "no"]


def _evidence(finding: Finding, corrected: Corrected, comparison: Comparison) -> str:
    interval = corrected.interval
    if finding.name == "H5":
        text = f"{interval.mean:+.0f} rounds"
        return text if math.isinf(interval.low) else f"{text} [{interval.low:.0f}, {interval.high:.0f}]"
    return difference(interval, comparison.measure)
