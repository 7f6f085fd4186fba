"""Further measures: who is worse off, who is served worst, what few examples give, what fine-tuning costs elsewhere.

Definitions: docs/metrics.md, "Beside the mean".
"""

import numpy as np

from nufed.common.examples import Group
from nufed.common.metric_looks import global_name
from nufed.deploy.experiments.comparison import Comparison
from nufed.deploy.experiments.finished import ClientTable, FinishedRun, Floats
from nufed.deploy.experiments.report_tables import TextTable
from nufed.deploy.experiments.statistics import Interval, t_interval
from nufed.deploy.experiments.wording import difference, estimate, span

SHARE = "accuracy"
"""Shares of clients are worded as this is."""
EQUAL = 1e-9
"""Part of a number within which two clients fare the same."""


def worse_off_table(comparison: Comparison, group: Group) -> TextTable | None:
    """Return the share of clients that do worse than alone and than under FedAvg; None without either of these.

    Each method is held against each of the two, client by client in runs of the same seed.
    """
    others = {title: name for title, name in against_whom(comparison).items() if name}
    if not others or len(comparison.runs) < 2:
        return None
    rows = []
    for method in comparison.runs:
        cells = ["" if other == method else _share(comparison, method, other, group) for other in others.values()]
        rows.append([comparison.labels[method], *cells])
    header = ["method", *(f"worse off than {title} ({comparison.labels[name]})" for title, name in others.items())]
    return TextTable(header, rows)


def against_whom(comparison: Comparison) -> dict[str, str]:
    """Return the methods of clients that train alone and of FedAvg, by `alone` and `with FedAvg`; empty if missing."""
    configs = {name: next(iter(runs.values())).config for name, runs in comparison.runs.items()}
    alone = [name for name, config in configs.items() if config.federation.training == "local"]
    fedavg = [
        name
        for name, config in configs.items()
        if config.federation.training != "local" and config.method.num_inner_steps == 0
    ]
    return {"alone": next(iter(alone), ""), "with FedAvg": next(iter(fedavg), "")}


def worse_off(comparison: Comparison, ours: str, theirs: str, group: Group) -> dict[int, float]:
    """Return seed -> share of the clients, of those that both runs judged, that do worse under `ours` at s*.

    A client that has diverged is worse off than one that has not.
    """
    shares, step, measure = {}, comparison.primary_step, comparison.measure
    for seed in sorted(comparison.runs[ours].keys() & comparison.runs[theirs].keys()):
        left, right = (_by_client(comparison.runs[name][seed], group, measure, step) for name in (ours, theirs))
        pairs = [(left[client], right[client]) for client in left if client in right]
        judged = [(mine, other) for mine, other in pairs if np.isfinite(mine) or np.isfinite(other)]
        if judged:
            worse = [_is_worse(comparison.sign * mine, comparison.sign * other) for mine, other in judged]
            shares[seed] = sum(worse) / len(worse)
    return shares


def worst_table(comparison: Comparison, group: Group) -> TextTable:
    """Return for every method the worst client, and the worst tenth, at s*, mean over seeds."""
    measure, rows = comparison.measure, []
    for method in comparison.runs:
        worst = worst_client(comparison, method, group)
        decile = span(comparison.worst_decile(method, group), measure)
        names = sorted(
            {name for run in comparison.runs[method].values() if (name := _worst_name(run, group, comparison))}
        )
        named = names[0] if len(names) == 1 else ""
        rows.append([comparison.labels[method], estimate(worst, measure), named, decile])
    return TextTable(["method", "worst client", "if always the same", "worst tenth"], rows)


def worst_client(comparison: Comparison, method: str, group: Group) -> Interval:
    """Return the worst client's measure at s*, mean over seeds."""
    tables = [run.groups[group] for _, run in sorted(comparison.runs[method].items())]
    return t_interval([_worst(comparison, table) for table in tables])


def global_table(comparison: Comparison, group: Group) -> TextTable | None:
    """Return what fine-tuning gives on one's own test examples and costs on everybody's; None where nobody measured it.

    Means over clients, then over seeds; the change is paired by seed, better being positive.
    """
    measure, step = comparison.measure, comparison.primary_step
    rows = []
    for method, runs in comparison.runs.items():
        curves = {
            name: np.array([run.groups[group].means(name) for _, run in sorted(runs.items())])
            for name in (measure, global_name(measure))
        }
        everybodys = curves[global_name(measure)]
        if not np.isfinite(everybodys).any():
            continue
        ends = [t_interval(list(values[:, each])) for values in curves.values() for each in (0, step)]
        change = t_interval(list(comparison.sign * (everybodys[:, step] - everybodys[:, 0])))
        cells = [estimate(each, measure) for each in ends]
        rows.append([comparison.labels[method], *cells, difference(change, measure)])
    header = [f"{whose} data, s = {each}" for whose in ("own", "everybody's") for each in (0, step)]
    return TextTable(["method", *header, "change on everybody's"], rows) if rows else None


def shots_table(comparison: Comparison, group: Group) -> TextTable | None:
    """Return a row for each method and number of support examples, the measure after some steps; None without any."""
    measure, last = comparison.measure, comparison.num_steps
    steps = sorted({0, 1, comparison.primary_step, last} & set(range(last + 1)))
    rows = []
    for method, runs in comparison.runs.items():
        found: dict[int, list[Floats]] = {}
        for _, run in sorted(runs.items()):
            shots = (run.summary.get("shots") or {}).get(group) or {}
            for size, own in shots.items():
                if curve := own.get(measure):
                    found.setdefault(int(size), []).append(np.array([np.nan if x is None else x for x in curve]))
        for size, curves in sorted(found.items()):
            values = np.array(curves)
            cells = [estimate(t_interval(list(values[:, step])), measure) for step in steps]
            rows.append([comparison.labels[method], str(size), *cells])
    return TextTable(["method", "examples, k", *(f"s = {step}" for step in steps)], rows) if rows else None


def _share(comparison: Comparison, ours: str, theirs: str, group: Group) -> str:
    shares = worse_off(comparison, ours, theirs, group)
    if not shares:
        return "no seed in common"
    return estimate(t_interval(list(shares.values())), SHARE)


def _is_worse(ours: float, theirs: float) -> bool:
    if not np.isfinite(ours):
        return True
    return bool(np.isfinite(theirs) and ours < theirs - EQUAL * max(1.0, abs(theirs)))


def _by_client(run: FinishedRun, group: Group, measure: str, step: int) -> dict[str, float]:
    table = run.groups[group]
    return dict(zip(table.client_ids, map(float, table.curves(measure)[:, step]), strict=True))


def _worst(comparison: Comparison, table: ClientTable) -> float:
    values = comparison.sign * table.at(comparison.measure, comparison.primary_step)
    return float(comparison.sign * values.min())  # NaN where a client has diverged


def _worst_name(run: FinishedRun, group: Group, comparison: Comparison) -> str:
    table = run.groups[group]
    values = comparison.sign * table.curves(comparison.measure)[:, comparison.primary_step]
    return table.client_ids[int(np.nanargmin(values))] if np.isfinite(values).any() else ""
