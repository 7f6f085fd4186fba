"""What came out of a run, as tables of text: each group of clients, and each client where there are few."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from nufed.common.errors import RunError
from nufed.common.metric_looks import look_of
from nufed.server.progress_lines import mean_of, measure_of, measures_of, num_undefined, number, said, worst_said

if TYPE_CHECKING:
    from nufed.server.client_curves import ClientCurves

MOST_CLIENTS_SHOWN = 6
GROUPS = ("participating", "new")
_FURTHER_OF_CLIENTS = 4


def headline(summary: Mapping[str, Any]) -> str:
    """Return the line above the tables, which explains their words."""
    groups = _groups(summary)
    words = ["worst: mean of the worst tenth of the clients"]
    if any(group.get("baselines") for group in groups.values()):
        measure = measure_of(next(iter(groups.values())))
        kind = "the commonest" if look_of(measure).is_share else "the commonest, or the mean,"
        words.append(f"same answer: {kind} to everything")
    if any(_all_undefined(group) for group in groups.values()):
        words.append("n: clients for whom the number is defined")
    return f"After s fine-tuning steps ({'; '.join(words)}):"


def summary_table(summary: Mapping[str, Any]) -> Table | None:
    """Return the final numbers: one row per group and metric, after 0, 1, ν, s* and S steps; None without any.

    Columns `worst` are the mean over the worst tenth of the clients, before and after S steps; `same answer` is what
    the commonest answer of each client's support split gets.
    """
    groups = _groups(summary)
    if not groups:
        return None
    first = next(iter(groups.values()))
    measure, last = measure_of(first), len(mean_of(first)) - 1
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(f"test {measure}\nof clients", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    steps, with_baseline = _steps_shown(summary, last), any(group.get("baselines") for group in groups.values())
    for step in steps:
        table.add_column(f"s = {step}\n{_step_names(step, summary, last)}", justify="right", no_wrap=True)
    for step in (0, last):
        table.add_column(f"s = {step}\nworst", justify="right", no_wrap=True)
    if with_baseline:
        table.add_column("same\nanswer", justify="right", no_wrap=True)
    for name, group in groups.items():
        for each in measures_of(group):
            missing = num_undefined(group, last, each)
            size = str(group["num_clients"] - missing) if missing or each == measure_of(group) else ""
            row = [name if each == measure_of(group) else f"  {each}", size]
            row += [said(group, step, each) for step in steps] + [worst_said(group, step, each) for step in (0, last)]
            table.add_row(*row, *([_baseline(group, each)] if with_baseline else []))
        if any(diverged := [_num_diverged(group, step, last) for step in steps]):
            table.add_row("  of them diverged", "", *map(str, diverged))
    return table


def steps_shown(summary: Mapping[str, Any]) -> list[int]:
    """Return the fine-tuning steps of the table's columns; none without clients."""
    group = next(iter(_groups(summary).values()), None)
    return _steps_shown(summary, len(mean_of(group)) - 1) if group else []


def turned_summary(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of `summary_table` for a narrow terminal: a column for each group."""
    groups = _groups(summary)
    first = next(iter(groups.values()))
    measure, last = measure_of(first), len(mean_of(first)) - 1
    rows = [["clients", *(str(group["num_clients"]) for group in groups.values())]]
    further = dict.fromkeys(name for group in groups.values() for name in measures_of(group) if name != measure)
    for step in _steps_shown(summary, last):
        name = f"s = {step} {_step_names(step, summary, last).replace('= ', '')}".strip()
        rows.append([name, *(said(group, step) for group in groups.values())])
        rows += [[f"  {each}", *_said_of_each(groups, step, each)] for each in further]
        diverged = [_num_diverged(group, step, last) for group in groups.values()]
        if any(diverged):
            rows.append(["  diverged", *map(str, diverged)])
    rows += [[f"s = {step} worst", *(worst_said(group, step) for group in groups.values())] for step in (0, last)]
    if any(group.get("baselines") for group in groups.values()):
        rows.append(["same answer", *(_baseline(group, measure) for group in groups.values())])
    return [f"test {measure}", *groups], rows


def clients_table(summary: Mapping[str, Any], folder: Path) -> tuple[list[str], list[list[str]]] | None:
    """Return each client's numbers after s* steps, with 95 % intervals, where there are few clients; else None.

    A group's mean over three hospitals may hide one whose model calls everybody ill.
    """
    from nufed.server.clients_table import CLIENTS, read_clients_csv  # loads PyTorch, which has run by now

    groups, step = _groups(summary), summary["primary_step"]
    number_of_clients = sum(group["num_clients"] for group in groups.values())
    if not 0 < number_of_clients <= MOST_CLIENTS_SHOWN or not (folder / CLIENTS).is_file():
        return None
    try:
        clients = read_clients_csv((folder / CLIENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RunError):
        return None  # the summary is shown all the same
    if not any(client.baselines for client in clients):
        return None
    first = next(iter(groups.values()))
    names = measures_of(first)[: 1 + _FURTHER_OF_CLIENTS]
    measure, rows = names[0], []
    for client in clients:
        cells = [client.client_id, str(client.num_test)]
        for name in names:
            ends, value = client.intervals.get(name), _of_client(client, name, step)
            cells.append(value + (f" {_ends(ends, name)}" if ends else ""))
        baseline = client.baselines.get(measure)
        rows.append([*cells, "" if baseline is None else number(baseline, measure)])
    return [f"s* = {step}, [95 %]", "n test", *names, "same answer"], rows


def _of_client(client: "ClientCurves", name: str, step: int) -> str:
    """Return a client's number after a step as it is shown; empty where it has no such metric."""
    if client.has_diverged(step):
        return "diverged"
    if (curve := client.curve(name)) is None:
        return ""
    return "undefined" if math.isnan(curve[step]) else number(curve[step], name)


def sample_line(summary: Mapping[str, Any]) -> list[str]:
    """Return a line on how many of the clients have judged the model, where these were not all."""
    found = [f"{own['asked']} of {own['of']} {group}" for group, own in summary.get("evaluation_sample", {}).items()]
    clients = f"{' and '.join(found)} clients"
    return [f"Judged by a sample: {clients}, the same in every evaluation (evaluation.num-clients)."] if found else []


def few_line(summary: Mapping[str, Any]) -> list[str]:
    """Return a line on how sure the clients' numbers are that were found on few test examples; none without any."""
    found = []
    for name, group in _groups(summary).items():
        if few := (group.get("intervals") or {}).get(measure_of(group)):
            width, measure = few["half_width"], measure_of(group)
            reach = f"{100 * width:.0f} points" if look_of(measure).is_share else f"{width:.2g}"
            found.append(f"{few['num_clients']} {name} (± {reach})")
    if not found:
        return []
    measure = measure_of(next(iter(_groups(summary).values())))
    return [f"Judged on fewer than 100 examples: {', '.join(found)}; 95 % intervals of {measure} are in clients.csv."]


def record_line(summary: Mapping[str, Any]) -> list[str]:
    """Return a line on what the run has cost each record; none without record-level privacy."""
    if not (told := summary.get("record_privacy")):
        return []
    delta = told["delta"] if isinstance(told["delta"], str) else f"{told['delta']:.3g}"
    worst, middle = (told[name] for name in ("worst_epsilon", "median_epsilon"))
    if middle is not None:
        said = f"ε = {worst:.3g} at the worst client, {middle:.3g} at the median (δ = {delta})"
    elif worst is not None:
        said = f"ε is at most {worst:.3g} (δ = {delta}); each client's own log says what it has spent"
    else:
        said = "each client's own log says ε (it follows from N; --publish examples has it told)"
    return [f"Privacy of each record: {said}."]


def _said_of_each(groups: Mapping[str, Mapping[str, Any]], step: int, measure: str) -> list[str]:
    return [said(group, step, measure) if mean_of(group, measure) else "" for group in groups.values()]


def _groups(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: summary[name] for name in GROUPS if summary.get(name)}


def _all_undefined(group: Mapping[str, Any]) -> bool:
    last = len(mean_of(group)) - 1
    return any(num_undefined(group, last, name) for name in measures_of(group))


def _num_diverged(group: Mapping[str, Any], step: int, last: int) -> int:
    return int(group.get("num_diverged", [0] * (last + 1))[step])


def _baseline(group: Mapping[str, Any], measure: str) -> str:
    value = (group.get("baselines") or {}).get(measure)
    return "" if value is None or value != value else number(value, measure)


def _ends(ends: tuple[float, float], measure: str) -> str:
    if look_of(measure).is_share:
        return f"[{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
    return f"[{ends[0]:.3g}, {ends[1]:.3g}]"


def _steps_shown(summary: Mapping[str, Any], last: int) -> list[int]:
    return sorted({0, min(1, last), min(summary["num_inner_steps"], last), summary["primary_step"], last})


def _step_names(step: int, summary: Mapping[str, Any], last: int) -> str:
    if step == 0:
        return "before"
    named = {"ν": summary["num_inner_steps"], "s*": summary["primary_step"], "S": last}
    return " = ".join(name for name, value in named.items() if value == step)
