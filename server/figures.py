"""The picture that a run leaves: progress over rounds on the left, the final adaptation curves on the right."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.config import RunConfig
from server.adaptation_curves import Curve, GroupCurves

# Okabe and Ito (2008): told apart with any kind of color vision, and in gray by lightness and marker.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
_STYLE: dict[str, Any] = {"linewidth": 2, "markersize": 5.5}


def draw_curves(
    evaluations: Sequence[tuple[int, Curve]],
    participating: GroupCurves | None,
    new: GroupCurves | None,
    *,
    config: RunConfig,
) -> bytes:
    """Return a PNG of progress over rounds and of the final adaptation curves.

    Args:
        evaluations: (round, mean curve over s of the participating clients), in the order of rounds.
        participating: final curves of the participating clients, None if none answered.
        new: final curves of the new clients, None without any.
        config: the run's options, for titles and for ν.
    """
    final = participating or new
    measure = final.measure if final else "accuracy"
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    progress, adaptation = figure.subplots(1, 2)
    figure.suptitle(_title(config), fontsize=12)
    _draw_progress(progress, evaluations, config)
    _draw_adaptation(adaptation, participating, new, config)
    for axes in (progress, adaptation):
        _dress(axes, measure)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def _draw_progress(axes: Axes, evaluations: Sequence[tuple[int, Curve]], config: RunConfig) -> None:
    last = config.evaluation.num_adapt_steps
    middle = config.method.num_inner_steps or 1
    steps = sorted({0, min(middle, last), last})
    looks = dict(zip((0, min(middle, last), last), ((ORANGE, "o"), (GREEN, "s"), (BLUE, "^")), strict=True))
    rounds = [done for done, _ in evaluations]
    for step in steps:
        color, marker = looks[step]
        axes.plot(
            rounds,
            [curve[step] for _, curve in evaluations],
            color=color,
            marker=marker,
            label=_after(step, config),
            **_STYLE,
        )
    axes.set_title("Progress (participating clients)")
    axes.set_xlabel("round k")
    if evaluations:
        axes.legend(title="fine-tuning", frameon=False)


def _draw_adaptation(axes: Axes, participating: GroupCurves | None, new: GroupCurves | None, config: RunConfig) -> None:
    for name, group, color, marker in (("participating", participating, BLUE, "o"), ("new", new, ORANGE, "s")):
        if group is None:
            continue
        means = group.loss if group.accuracy is None else group.accuracy
        steps = range(len(means))
        low = [mean - spread for mean, spread in zip(means, group.spread, strict=True)]
        high = [mean + spread for mean, spread in zip(means, group.spread, strict=True)]
        label = f"{name} ({group.num_clients} client{'s' if group.num_clients != 1 else ''})"
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, means, color=color, marker=marker, label=label, **_STYLE)
        axes.plot(steps, group.worst_decile, color=color, linestyle=":", linewidth=1.6, label=f"{name}, worst decile")
    if nu := config.method.num_inner_steps:
        axes.axvline(nu, color="0.45", linestyle="--", linewidth=1)
    axes.set_title(f"Adaptation after round {config.federation.num_rounds} (band: ±1 sd over clients)")
    axes.set_xlabel("fine-tuning steps s")
    if participating or new:
        axes.legend(frameon=False)


def _dress(axes: Axes, measure: str) -> None:
    axes.set_ylabel("test accuracy (%)" if measure == "accuracy" else "test loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _title(config: RunConfig) -> str:
    method = config.method
    return (
        f"{config.name}: {config.data.source}, {config.model.name}, ν = {method.num_inner_steps}, "
        f"{method.estimator}, α = {method.inner_lr:g}, β = {method.local_lr:g}, τ = {method.num_local_steps}"
    )


def _after(step: int, config: RunConfig) -> str:
    if step == 0:
        return "none"
    nu = " (= ν)" if step == config.method.num_inner_steps else ""
    return f"{step} step{'s' if step > 1 else ''}{nu}"
