"""Choosing step sizes: the same number of grid points for every method, judged on validation data alone.

A point's score is the primary metric A(s*) of the participating clients on their validation splits, mean over the
tuning seeds; minus it where less is better. Neither test splits nor new clients have a say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.common.json_text import parse_object
from nufed.common.metric_looks import LOSS, look_of, sign_of
from nufed.deploy.experiments.cells import Cell, Outcome
from nufed.deploy.experiments.runner import Workers, run_cells
from nufed.deploy.experiments.suite import FIRST_TUNING_SEED, Entry, Options, Suite, num_points


@dataclass(frozen=True)
class Scored:
    """A grid point with its score, -inf where a run diverged."""

    point: Options
    score: float


@dataclass(frozen=True)
class Choice:
    """What was chosen for one method in one setting.

    Attributes:
        entry: key of the entry.
        config: the chosen configuration, with seed 0 and the final number of rounds.
        scored: all points; empty if there was nothing to choose.
        point: the chosen one.
        at_edge: options whose chosen value is the smallest or the largest of the grid.
    """

    entry: str
    config: RunConfig
    scored: tuple[Scored, ...]
    point: Options
    at_edge: tuple[str, ...]


def tune(suite: Suite, workers: Workers) -> dict[str, Choice]:
    """Return the choice for every entry; methods that follow another are tuned after it.

    Raises:
        NufedError: a run cannot start, or every point of a method diverged.
    """
    entries = suite.entries()
    choices = _tune([entry for entry in entries if not entry.followed], {}, workers)
    choices |= _tune([entry for entry in entries if entry.followed], choices, workers)
    return {entry.key: choices[entry.key] for entry in entries}


def tuning_cells(entry: Entry, point: Mapping[str, Any], followed: RunConfig | None) -> list[Cell]:
    """Return the runs that a grid point is judged on: no evaluation on the way, since only the end counts."""
    config, rounds = entry.config(point, followed), entry.suite.tuning_rounds
    changes = {"evaluation.interval": 0, "federation.num-rounds": rounds or config.federation.num_rounds}
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + entry.suite.tuning_seeds)
    return [Cell(entry.key, config.updated({**changes, "seed": seed}), entry.attack) for seed in seeds]


def validation_score(summary: Mapping[str, Any]) -> float:
    """Return the validation A(s*) of the participating clients of a finished run; minus it where less is better.

    It is -inf for NaN, where the metric is undefined for all, and where a client has diverged at s*: the others alone
    would do better.

    Raises:
        RunError: the clients have no validation split.
    """
    group = summary.get("participating") or {}
    measure, sign = _judged_by(group)
    own: Mapping[str, Any] = group if measure in ("accuracy", LOSS) else group.get("metrics") or {}
    curve = own.get(f"validation_{measure}" if own is group else f"validation-{measure}")
    if curve is None:
        raise RunError(
            "Expected participating clients to have validation examples to choose step sizes on, but none has. "
            "Raise data.validation-fraction, or leave the suite's grid empty."
        )
    step = summary["primary_step"]
    value, has_diverged = curve[step], any(group.get("num_diverged", ())[step : step + 1])
    return sign * value if value is not None and math.isfinite(value) and not has_diverged else -math.inf


def _judged_by(group: Mapping[str, Any]) -> tuple[str, float]:
    """Return the measure of a group of summary.json, and 1 where more of it is better, else -1."""
    measure = group.get("measure") or ("accuracy" if group.get("validation_accuracy") is not None else LOSS)
    return measure, sign_of(group.get("better") or look_of(measure).better)


def at_edge(point: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Return the options whose value is at an end of the grid, beyond which a better one may lie.

    The largest step size below 0 does not exist: an end is an end also where the next value would be absurd.
    """
    return tuple(
        key for key, value in point.items() if len(grid[key]) > 1 and value in (min(grid[key]), max(grid[key]))
    )


def _tune(entries: list[Entry], chosen: Mapping[str, Choice], workers: Workers) -> dict[str, Choice]:
    plans: list[tuple[Entry, RunConfig | None, Options, list[Cell]]] = []
    for entry in entries:
        followed = chosen[entry.followed].config if entry.followed else None
        points = entry.points() if num_points(entry.suite.grid_of(entry.method)) > 1 else []
        plans += [(entry, followed, point, tuning_cells(entry, point, followed)) for point in points]
    outcomes = run_cells([cell for *_, cells in plans for cell in cells], workers)
    scored: dict[str, list[Scored]] = {entry.key: [] for entry in entries}
    for entry, _, point, cells in plans:
        scored[entry.key].append(Scored(point, _mean_score([outcomes[cell.name] for cell in cells])))
    return {
        entry.key: _choose(entry, scored[entry.key], chosen[entry.followed].config if entry.followed else None)
        for entry in entries
    }


def _mean_score(outcomes: Sequence[Outcome]) -> float:
    scores = [validation_score(read_summary(each.folder)) if each.folder else -math.inf for each in outcomes]
    return sum(scores) / len(scores)


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the content of a run's summary.json.

    Raises:
        RunError: it is absent or torn.
    """
    path = folder / "summary.json"
    try:
        summary = parse_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"Expected a finished run in {folder}, but {error}. Give a folder that a run left.") from error
    return summary


def _choose(entry: Entry, scored: list[Scored], followed: RunConfig | None) -> Choice:
    """Return the point with the best score; of equal ones the first, which in a rising grid is the smallest."""
    if not scored:
        point = entry.points()[0]
        return Choice(entry.key, entry.config(point, followed), (), point, ())
    best = max(scored, key=lambda each: each.score)
    if not math.isfinite(best.score):
        raise RunError(
            f"Expected a grid point of {entry.key} to train, but all {len(scored)} diverged. "
            "Put smaller step sizes into the suite's grid."
        )
    config = entry.config(best.point, followed)
    edges = at_edge(best.point, entry.suite.grid_of(entry.method))
    return Choice(entry.key, config, tuple(scored), best.point, edges)
