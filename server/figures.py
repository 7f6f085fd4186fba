"""The picture that a run leaves: progress over rounds on the left, the final adaptation curves on the right."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nufed.common.config import RunConfig
from nufed.common.metric_looks import look_of
from nufed.server.adaptation_curves import GroupCurves
from nufed.server.curve_means import Curve

# Okabe and Ito (2008): told apart with any kind of color vision, and in gray by lightness and marker.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
LONGEST_SOURCE = 40
_LARGEST_DRAWN = 1e100
_STYLE: dict[str, Any] = {"linewidth": 2, "markersize": 5.5}


def draw_curves(
    evaluations: Sequence[tuple[int, Curve]],
    participating: GroupCurves | None,
    new: GroupCurves | None,
    *,
    config: RunConfig,
) -> bytes:
    """Return a PNG of progress over rounds and of the final adaptation curves; arguments as of `curves_figure`."""
    image = io.BytesIO()
    curves_figure(evaluations, participating, new, config=config).savefig(
        image, format="png", metadata={"Software": None}
    )
    return image.getvalue()


class ShownFigure(Figure):
    """A figure that a notebook shows when it is the value of a cell, whether pyplot is in use or not."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.savefig(image, format="png")
        return image.getvalue()


def curves_figure(
    evaluations: Sequence[tuple[int, Curve]],
    participating: GroupCurves | None,
    new: GroupCurves | None,
    *,
    config: RunConfig,
) -> Figure:
    """Return the figure of progress over rounds and of the final adaptation curves.

    Args:
        evaluations: (round, mean curve over s of the participating clients), in the order of rounds.
        participating: final curves of the participating clients, None if none answered.
        new: final curves of the new clients, None without any.
        config: the run's options, for titles and for ν.
    """
    final = participating or new
    measure = final.measure if final else "accuracy"
    scale = 100.0 if look_of(measure).is_share else 1.0
    figure = ShownFigure(figsize=(11, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    progress, adaptation = figure.subplots(1, 2)
    figure.suptitle(title_of(config), fontsize=12, parse_math=False)
    _draw_progress(progress, evaluations, config, (measure, scale, final.sign if final else 1.0))
    _draw_adaptation(adaptation, {"participating": participating, "new": new}, config, scale)
    for axes in (progress, adaptation):
        _dress(axes, measure)
    return figure


def _draw_progress(
    axes: Axes, evaluations: Sequence[tuple[int, Curve]], config: RunConfig, shown: tuple[str, float, float]
) -> None:
    """Draw what evaluations on the way have found.

    Args:
        axes: where.
        evaluations: (round, mean curve over s).
        config: the run's options.
        shown: what is drawn, its scale, and 1 where more of it is better, else -1.
    """
    measure, scale, sign = shown
    last = config.evaluation.num_adapt_steps
    middle = min(config.method.num_inner_steps or 1, last)
    looks = {0: (ORANGE, "o"), middle: (GREEN, "s"), last: (BLUE, "^")}
    rounds = [done for done, _ in evaluations]
    for step, (color, marker) in sorted(looks.items(), reverse=sign > 0):
        means = _finite([scale * curve[step] for _, curve in evaluations])
        axes.plot(rounds, means, color=color, marker=marker, label=_after(step, config), **_STYLE)
    axes.set_title("Progress of the participating clients")
    axes.set_xlabel("round k")
    if evaluations:
        axes.legend(title=f"{measure} after", frameon=False)


def _draw_adaptation(axes: Axes, groups: Mapping[str, GroupCurves | None], config: RunConfig, scale: float) -> None:
    for (name, group), (color, marker) in zip(groups.items(), ((BLUE, "o"), (ORANGE, "s")), strict=True):
        if group is None:
            continue
        means = scale * _finite(group.mean)
        spread, worst = scale * _finite(group.spread), scale * _finite(group.worst_decile)
        steps = range(len(means))
        label = f"{name}, mean of {group.num_clients}"
        axes.fill_between(steps, means - spread, means + spread, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, means, color=color, marker=marker, label=label, **_STYLE)
        axes.plot(steps, worst, color=color, linestyle=":", linewidth=1.8, label=f"{name}, worst tenth")
        if (baseline := group.baselines.get(group.measure)) is not None:
            level = scale * _finite([baseline])[0]
            axes.axhline(level, color=color, linestyle="-.", linewidth=1.0, label=f"{name}, without a model", zorder=1)
    if nu := config.method.num_inner_steps:
        axes.axvline(nu, color="0.45", linestyle="--", linewidth=1.2, label=f"trained for: ν = {nu}", zorder=1)
    axes.set_title("Adaptation of the final model (band: ±1 sd over clients)")
    axes.set_xlabel("fine-tuning steps s")
    if any(groups.values()):
        axes.legend(frameon=False)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    """Return the values with a gap where a model diverged; infinities, and what is next to them, fit on no axis."""
    array = np.array(values, dtype=np.float64)
    return np.where(np.abs(array) < _LARGEST_DRAWN, array, np.nan)


def _dress(axes: Axes, measure: str) -> None:
    axes.set_ylabel(f"test {measure} (%)" if look_of(measure).is_share else f"test {measure}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    low, high = axes.get_ylim()
    lowest = max(low, 0.0) if measure == "loss" or look_of(measure).low >= 0 else low
    axes.set_ylim(lowest, min(high, 101.0) if look_of(measure).is_share else high)  # a band can leave the range
    axes.grid(visible=True, color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def title_of(config: RunConfig) -> str:
    """Return what stands above a run's figures: its name, data, model and method."""
    method, source = config.method, config.data.source
    if len(source) > LONGEST_SOURCE:
        source = f"…{source[1 - LONGEST_SOURCE :]}"
    return (
        f"{config.name}: {source}, {config.model.name}, ν = {method.num_inner_steps}, "
        f"{method.estimator}, α = {method.inner_lr:g}, β = {method.local_lr:g}, τ = {method.num_local_steps}"
    )


def _after(step: int, config: RunConfig) -> str:
    if step == 0:
        return "0 steps"
    nu = " (= ν)" if step == config.method.num_inner_steps else ""
    return f"{step} step{'s' if step > 1 else ''}{nu}"
