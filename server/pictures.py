"""The pictures that a run leaves, last of all: it is no less complete without them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from nufed.common.errors import NufedError
from nufed.common.examples import Group
from nufed.common.shots import SHOTS
from nufed.server.adaptation_curves import GroupCurves
from nufed.server.curve_means import Curve
from nufed.server.run_folder import SHOTS_FIGURE, RunFolder

_log = logging.getLogger("nufed.server.run")


def leave_pictures(
    folder: RunFolder,
    evaluations: Sequence[tuple[int, Curve]],
    groups: Mapping[Group, GroupCurves | None],
    summary: Mapping[str, Any],
) -> None:
    """Leave curves.png, and shots.png if there are any; nothing where nothing was evaluated, or that is withheld."""
    if not evaluations and not any(groups.values()):
        return
    from nufed.server.figures import draw_curves, title_of  # matplotlib is loaded where something is drawn

    try:
        folder.write_figures(draw_curves(evaluations, groups["participating"], groups["new"], config=folder.config))
        if summary.get(SHOTS):
            from nufed.server.shots_figure import draw_shots

            folder.write_figures(draw_shots(summary[SHOTS], title_of(folder.config)), SHOTS_FIGURE)
    except (NufedError, OSError, MemoryError, ValueError, ArithmeticError, RuntimeError) as error:
        _log.warning("The picture of this run could not be left, its other results are whole: %s", error)
