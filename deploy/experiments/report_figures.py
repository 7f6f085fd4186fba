"""The figures of a report: one question each, small enough to be read on a telephone."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from nufed.common.examples import Group
from nufed.common.metric_looks import look_of
from nufed.deploy.experiments.comparison import Comparison
from nufed.deploy.experiments.finished import Floats, Progress
from nufed.deploy.experiments.statistics import Interval

# Okabe and Ito (2008), without the yellow that white paper swallows; line styles tell a second round apart.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", "--", ":")
MARKERS = "os^Dvp"
MOST_BANDS = 6
PNG_DPI = 150
NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0)
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.fonttype": "none",
}


def adaptation_figure(comparison: Comparison, group: Group) -> Figure:
    """Return A(s) of every method with 95 % intervals over seeds."""
    figure, axes = _canvas(len(comparison.runs))
    scale = _scale(comparison)
    for name in comparison.runs:
        curve = comparison.curve(name, group)
        steps = range(len(curve))
        look = _look(comparison, name)
        low, high = ([_finite(scale * getattr(each, end)) for each in curve] for end in ("low", "high"))
        if len(comparison.runs) <= MOST_BANDS:
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.12, linewidth=0)
        axes.plot(steps, [_finite(scale * each.mean) for each in curve], **look)
    axes.axvline(comparison.primary_step, color="0.6", linestyle=":", linewidth=1, zorder=0)
    axes.set_xlabel("fine-tuning steps s (dotted: s*)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, axes, comparison)
    return figure


def progress_figure(comparison: Comparison, against: str) -> Figure:
    """Return A(s*) of the participating clients during training, mean over seeds.

    Args:
        comparison: the runs.
        against: `rounds`, `gradients` or `bytes`.
    """
    costs: dict[str, tuple[str, Callable[[Progress], Any]]] = {
        "rounds": ("round k", lambda progress: progress.rounds),
        "gradients": ("gradient equivalents of one client in every round", lambda progress: progress.gradients),
        "bytes": ("megabytes sent and received by the server", lambda progress: progress.num_bytes / 1e6),
    }
    title, cost = costs[against]
    figure, axes = _canvas(len(comparison.runs))
    for name, runs in comparison.runs.items():
        progress = [run.progress for run in runs.values() if len(run.progress.rounds)]
        if not progress or any(len(each.rounds) != len(progress[0].rounds) for each in progress):
            continue
        at_step = np.mean([each.curves[:, comparison.primary_step] for each in progress], axis=0)
        x = np.mean([cost(each) for each in progress], axis=0)
        axes.plot(x, _scale(comparison) * np.where(np.isfinite(at_step), at_step, np.nan), **_look(comparison, name))
    if against == "gradients":
        axes.set_xscale("symlog", linthresh=max(1.0, _smallest_cost(comparison)))
    elif against == "rounds":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(title)
    _finish(figure, axes, comparison)
    return figure


def clients_figure(comparison: Comparison, group: Group) -> Figure:
    """Return how the clients of all seeds are spread at s*: box, whiskers at 5 and 95 %, and the worst tenth's mean."""
    names = list(comparison.runs)
    figure, axes = _canvas(0, rows=len(names))
    scale = _scale(comparison)
    values = [_all_clients(comparison, name, group) * scale for name in names]
    for row, each in enumerate(values):
        present = each[np.isfinite(each)]
        if len(present):
            low, first, middle, third, high = np.quantile(present, [0.05, 0.25, 0.5, 0.75, 0.95])
            axes.plot([low, high], [row, row], color="0.4", linewidth=1.2, zorder=1)
            axes.barh(row, third - first, left=first, height=0.5, color="#cfe3f1", edgecolor="0.3", zorder=2)
            axes.plot([middle] * 2, [row - 0.25, row + 0.25], color="#D55E00", linewidth=2, zorder=3)
    worst = [scale * comparison.worst_mean(name, group) for name in names]
    axes.plot(worst, range(len(names)), linestyle="", marker="D", color="black", label="worst tenth", zorder=4)
    axes.set_yticks(range(len(names)), [comparison.labels[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(f"{_measure(comparison)} of a client after s* = {comparison.primary_step} steps")
    figure.legend(loc="outside upper center")
    return figure


def differences_figure(comparison: Comparison, other: str) -> Figure:
    """Return paired differences of all methods to `other` at s*, with Holm-corrected intervals."""
    names = [name for name in comparison.runs if name != other]
    figure, axes = _canvas(0, rows=1.3 * len(names))
    scale = _scale(comparison)
    looks: Sequence[tuple[Group, str, str, float]] = (
        ("new", "#D55E00", "o", -0.13),
        ("participating", "#0072B2", "s", 0.13),
    )
    for group, color, marker, shift in looks:
        if group not in comparison.groups:
            continue
        found, label = comparison.against(other, group, comparison.primary_step), f"{group} clients"
        for row, name in enumerate(names):
            interval = found[name].interval if name in found else NOTHING
            if not np.isfinite([interval.low, interval.high]).all():
                continue
            axes.plot([scale * interval.low, scale * interval.high], [row + shift] * 2, color=color, linewidth=2)
            axes.plot(scale * interval.mean, row + shift, marker=marker, color=color, linestyle="", label=label)
            label = ""
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(names)), [comparison.labels[name] for name in names])
    axes.invert_yaxis()
    measure = comparison.measure
    unit = f"points of {measure}" if look_of(measure).is_share else measure
    axes.set_xlabel(f"difference in {unit}; right is better")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def draw(figures: Mapping[str, Callable[[], Figure]]) -> dict[str, tuple[str, bytes]]:
    """Return name -> (SVG markup to put into a page, PNG) of each figure; equal content gives equal markup.

    `savefig` would lay out and draw each figure four times; here it is laid out once, and drawn once for each format.
    """
    drawn = {}
    for name, make in figures.items():
        with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
            figure, svg, png = make(), io.StringIO(), io.BytesIO()
            figure.set_dpi(PNG_DPI)
            raster: Any = FigureCanvasAgg(figure)
            raster.draw()
            pixels = np.asarray(raster.buffer_rgba())[..., :3]
            Image.fromarray(pixels).save(png, format="png", dpi=(PNG_DPI, PNG_DPI), compress_level=4)
            figure.set_layout_engine("none")
            vector: Any = FigureCanvasSVG(figure)
            vector.print_svg(svg, metadata={"Date": None, "Creator": None})
        text = svg.getvalue()
        drawn[name] = (text[text.index("<svg") :], png.getvalue())
    return drawn


def _canvas(num_labels: int, *, rows: float = 0.0) -> tuple[Figure, Axes]:
    """Return an empty figure whose height leaves room for a legend of `num_labels` names below, or for rows."""
    height = 1.4 + 0.36 * rows if rows else 3.9 + 0.24 * ((num_labels + 1) // 2)
    figure = Figure(figsize=(5.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _finish(figure: Figure, axes: Axes, comparison: Comparison) -> None:
    axes.set_ylabel(_measure(comparison))
    if look_of(comparison.measure).is_share:
        axes.set_ylim(max(0.0, axes.get_ylim()[0]), min(100.0, axes.get_ylim()[1]))
    elif comparison.sign < 0 and axes.dataLim.ymin > 0:
        _scale_losses(axes)
    if len(comparison.runs) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _scale_losses(axes: Axes) -> None:
    """Show losses, which fall by decades, on a logarithmic axis with plain numbers."""
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if np.diff(np.log10(axes.get_ylim()))[0] < 1.5 else FuncFormatter(_nothing))


def _nothing(_value: float, _position: int | None) -> str:
    return ""


def _look(comparison: Comparison, name: str) -> dict[str, Any]:
    index = list(comparison.runs).index(name)
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index // len(COLORS) % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.8,
        "label": comparison.labels[name],
    }


def _scale(comparison: Comparison) -> float:
    return 100.0 if look_of(comparison.measure).is_share else 1.0


def _measure(comparison: Comparison) -> str:
    unit = " (%)" if look_of(comparison.measure).is_share else ""
    return f"test {comparison.measure}{unit}"


def _finite(value: float) -> float:
    return value if np.isfinite(value) else np.nan


def _all_clients(comparison: Comparison, name: str, group: Group) -> Floats:
    curves = comparison.clients(name, group).values()
    return np.concatenate([each[:, comparison.primary_step] for each in curves])


def _smallest_cost(comparison: Comparison) -> float:
    """Return the first positive cost of any run, from which on the axis is logarithmic."""
    firsts = [
        float(run.progress.gradients[1])
        for runs in comparison.runs.values()
        for run in runs.values()
        if len(run.progress.gradients) > 1
    ]
    return min(firsts, default=1.0)
