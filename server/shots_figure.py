"""The picture of few examples: for each group, the primary metric by support examples and fine-tuning steps."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nufed.common.metric_looks import look_of
from nufed.server.figures import ShownFigure

MOST_NUMBERS = 12
"""Columns up to which each cell of the picture says its number."""


def draw_shots(shots: Mapping[str, Any], title: str = "") -> bytes:
    """Return a PNG of `shots` of a summary.json; arguments as of `shots_figure`."""
    image = io.BytesIO()
    shots_figure(shots, title).savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def shots_figure(shots: Mapping[str, Any], title: str = "") -> ShownFigure:
    """Return a figure with a map for each group that there is.

    Args:
        shots: of a summary.json: group -> number of examples -> means over clients.
        title: above it.
    """
    groups = {name: found for name, found in shots.items() if found}
    figure = ShownFigure(figsize=(max(5.5 * len(groups), 5.5), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, parse_math=False)
    maps = figure.subplots(1, max(len(groups), 1), squeeze=False)[0]
    for axes, (name, found) in zip(maps, groups.items(), strict=False):
        _draw(axes, name, found)
    return figure


def _draw(axes: Axes, name: str, found: Mapping[str, Any]) -> None:
    measure = next(iter(found.values()))["measure"]
    scale, unit = (100.0, " (%)") if look_of(measure).is_share else (1.0, "")
    rows = [[math.nan if value is None else scale * value for value in own.get(measure, [])] for own in found.values()]
    width = max(map(len, rows), default=0)
    values = np.array([row + [math.nan] * (width - len(row)) for row in rows]).reshape(len(rows), width)
    values = np.where(np.abs(values) < 1e100, values, np.nan)  # infinities fit no scale of colors
    image = axes.imshow(values, aspect="auto", origin="lower", cmap="cividis")
    axes.figure.colorbar(image, ax=axes, label=f"test {measure}{unit}")
    axes.set_yticks(range(len(rows)), list(found))
    axes.set_xlabel("fine-tuning steps s")
    axes.set_ylabel("support examples, k")
    most = max(own["num_clients"] for own in found.values())
    axes.set_title(f"{name}, mean of {most}")
    if width <= MOST_NUMBERS and np.isfinite(values).any():
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            color = "black" if value > middle else "white"
            text = "" if math.isnan(value) else f"{value:.0f}" if scale > 1 else f"{value:.2g}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
