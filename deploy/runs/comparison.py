"""Runs side by side: where their options differ, what came out, and their curves over rounds."""

from collections.abc import Mapping, Sequence
from typing import Any

from nufed.common.json_text import parse_object
from nufed.common.regular_file import open_regular
from nufed.deploy.runs.stored import LONGEST_LINE, METRICS, StoredRun, group_results

_ABOUT_NAMES = ("name",)
"""Options that decide no numbers."""

Point = tuple[int, float | None, float | None]
"""A round, and the mean before and after s* fine-tuning steps."""


def differing_options(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all; where a run of an older version lacks one, it differs.

    Examples:
        >>> differing_options([{"seed": 0, "model.name": "mlp"}, {"seed": 1, "model.name": "mlp"}])
        ['seed']
    """
    keys = dict.fromkeys(key for each in options for key in each)
    return [key for key in keys if key not in _ABOUT_NAMES and len({repr(each.get(key)) for each in options}) > 1]


def progress(run: StoredRun) -> dict[str, list[Point]]:
    """Return group -> what the evaluations of a run have shown, in the order of rounds.

    New clients are judged at the end of a run alone. What is torn is left out.
    """
    points: dict[str, dict[int, Point]] = {}
    try:
        with open_regular(run.folder / METRICS) as log:
            while line := log.readline(LONGEST_LINE):
                if b'"evaluation": null' in line[-200:]:
                    continue
                record = parse_object(line)
                _note(points, int(record["round"]), record.get("evaluation") or {}, run.step)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        pass
    for name, group in run.groups.items():
        if run.summary:
            points.setdefault(name, {})[run.rounds] = (run.rounds, group.before, group.after)
    return {name: [found[done] for done in sorted(found)] for name, found in points.items()}


def _note(points: dict[str, dict[int, Point]], done: int, evaluation: Mapping[str, Any], step: int) -> None:
    for name, group in group_results(evaluation, step)[1].items():
        points.setdefault(name, {})[done] = (done, group.before, group.after)
