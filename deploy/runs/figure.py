"""One picture of several runs: what they are judged by over rounds, and after s = 0 … S fine-tuning steps."""

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from nufed.common.errors import ConfigError
from nufed.deploy.runs.comparison import progress
from nufed.deploy.runs.stored import GROUPS, StoredRun

FORMATS = (".png", ".svg")
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which people with any kind of colour vision tell apart; lines differ in their dashes as well."""
_DASHES = ("-", "--", "-.", ":")


def draw_comparison(runs: Sequence[StoredRun], path: Path) -> None:
    """Draw the curves of runs into a PNG or SVG file.

    Raises:
        ConfigError: the runs have no curves, or are not judged by the same.
        RunError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    from nufed.common.durable_file import replace_durably

    judged = [run for run in runs if run.groups]
    measures = {run.measure for run in judged}
    if len(measures) != 1:
        what = f"they are judged by {' and '.join(sorted(measures))}" if measures else "none of them was judged yet"
        raise ConfigError(f"Expected runs whose curves fit into one picture, but {what}. Choose others, or no --out.")
    (measure,) = measures
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    over_rounds, over_steps = figure.subplots(1, 2)
    for run, color, dash in zip(judged, cycle(_COLORS), cycle(_DASHES)):
        style = {"color": color, "linestyle": dash, "linewidth": 1.6}
        points = progress(run).get("participating") or []
        marker = "o" if len(points) < 2 else ""
        over_rounds.plot([at for at, *_ in points], [_plain(after) for *_, after in points], marker=marker, **style)
        for name in (name for name in GROUPS if name in run.groups):
            curve = [_plain(value) for value in run.groups[name].curve]
            label = run.folder.name if name == "participating" else f"{run.folder.name}, new"
            filled = "full" if name == "participating" else "none"
            over_steps.plot(range(len(curve)), curve, marker="o", markersize=4, fillstyle=filled, label=label, **style)
    over_rounds.set(xlabel="round", ylabel=f"{measure} after s* fine-tuning steps", title="participating clients")
    over_steps.set(xlabel="fine-tuning steps s", ylabel=measure, title="at the end")
    for axes in (over_rounds, over_steps):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(2, len(judged)), fontsize="small", frameon=False)
    replace_durably(path, lambda partial: figure.savefig(partial, format=path.suffix[1:].lower(), dpi=150))


def _plain(value: float | None) -> float:
    return math.nan if value is None else value
