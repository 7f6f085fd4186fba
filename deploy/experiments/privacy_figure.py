"""What privacy costs in an experiment whose settings differ in ε: a figure and a table, for each source of data."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nufed.common.examples import Group
from nufed.common.metric_looks import look_of
from nufed.deploy.experiments.comparison import Comparison
from nufed.deploy.experiments.hypotheses import Graded
from nufed.deploy.experiments.report_figures import COLORS, MARKERS
from nufed.deploy.experiments.report_tables import TextTable
from nufed.deploy.experiments.statistics import Interval
from nufed.deploy.experiments.story import GROUP_NAMES
from nufed.deploy.experiments.wording import estimate

Levels = Mapping[str, Mapping[float, Comparison]]
"""Source of data -> ε, infinite without privacy -> the runs with it, from much to little privacy."""


def levels_of(settings: Sequence[Graded]) -> Levels:
    """Return the settings by source of data and ε; nothing unless a source has two ε's or more."""
    found: dict[str, dict[float, Comparison]] = {}
    for graded in settings:
        first = graded.comparison.first
        found.setdefault(first.config.data.source, {})[_epsilon(first.config.privacy.dp, first.summary)] = (
            graded.comparison
        )
    return {source: dict(sorted(levels.items())) for source, levels in found.items() if len(levels) > 1}


def privacy_figure(levels: Levels, group: Group) -> Figure:
    """Return the measure at s* against ε: a panel for each source of data, a line for each method, bars over seeds."""
    figure = Figure(figsize=(4.6 * len(levels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(levels), squeeze=False)[0]
    for axes, (source, by_epsilon) in zip(panels, levels.items(), strict=True):
        first = next(iter(by_epsilon.values()))
        scale = 100.0 if look_of(first.measure).is_share else 1.0
        for index, name in enumerate(first.runs):
            seeds = [list(runs.means(name, group, runs.primary_step).values()) for runs in by_epsilon.values()]
            means = [scale * sum(values) / len(values) for values in seeds]
            below = [mean - scale * min(values) for mean, values in zip(means, seeds, strict=True)]
            above = [scale * max(values) - mean for mean, values in zip(means, seeds, strict=True)]
            axes.errorbar(
                [position + 0.08 * (index - (len(first.runs) - 1) / 2) for position in range(len(means))],
                means,
                yerr=[below, above],
                color=COLORS[index % len(COLORS)],
                marker=MARKERS[index % len(MARKERS)],
                linewidth=1.6,
                capsize=2,
                label=first.labels[name],
            )
        axes.set_xticks(range(len(by_epsilon)), [_word(epsilon) for epsilon in by_epsilon])
        axes.set_xlabel("ε (left: more privacy)")
        axes.set_title(f"{source}: {GROUP_NAMES[group]}", fontsize=11)
        axes.set_ylabel(f"test {first.measure}{' (%)' if scale > 1 else ''} at s* = {first.primary_step}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def privacy_table(levels: Levels, group: Group) -> TextTable:
    """Return a row for each source of data and ε, a column for each method, at s*."""
    first = next(iter(next(iter(levels.values())).values()))
    rows = [
        [
            source,
            _word(epsilon),
            *(estimate(_at_step(runs, name, group), runs.measure) for name in runs.runs),
        ]
        for source, by_epsilon in levels.items()
        for epsilon, runs in by_epsilon.items()
    ]
    return TextTable(["data", "ε", *(first.labels[name] for name in first.runs)], rows)


def spent_lines(comparison: Comparison) -> list[str]:
    """Return a sentence on the largest ε of a comparison's runs, for clients and for records; nothing without DP."""
    summaries = [run.summary for runs in comparison.runs.values() for run in runs.values()]
    lines = []
    if clients := [told for each in summaries if (told := each.get("privacy"))]:
        most = max(clients, key=lambda told: _number(told["epsilon"]))
        lines.append(
            f"Client-level differential privacy: ε = {_number(most['epsilon']):.3g} at δ = {most['delta']:.2g}."
            if all(told.get("is_private", True) for told in clients)
            else "Not private: the noise was drawn from a key for tests."
        )
    if records := [told["worst_epsilon"] for each in summaries if (told := each.get("record_privacy"))]:
        worst = max(map(_number, records))
        lines.append(f"Record-level differential privacy: ε of a record is at most {worst:.3g}.")
    return lines


def _epsilon(dp: str, summary: Mapping[str, Any]) -> float:
    """Return ε as a run has accounted for it, to two digits, so that those of several seeds are one; ∞ without DP."""
    told = summary.get("privacy")
    return float(f"{_number(told['epsilon']):.2g}") if dp == "client" and told else math.inf


def _number(epsilon: float | None) -> float:
    """Return ε as summaries have it: null where it is infinite."""
    return math.inf if epsilon is None else float(epsilon)


def _word(epsilon: float) -> str:
    return f"{epsilon:g}" if math.isfinite(epsilon) else "none"


def _at_step(runs: Comparison, name: str, group: Group) -> Interval:
    return runs.mean(name, group, runs.primary_step)
