"""How an experiment stands, read from its folder: runs done and left, and the results of the methods so far."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nufed.common.json_text import json_ready, options_text, parse_object
from nufed.common.metric_looks import look_of
from nufed.common.regular_file import open_regular
from nufed.deploy.dashboard.hidden_paths import without_folders
from nufed.deploy.runs.catalog import CELLS, EXPERIMENT
from nufed.deploy.runs.stored import GROUPS, read_stored

DONE, PLAN = "done.json", "plan.json"
FIRST_TUNING_SEED = 1000
_MOST_CELLS = 2000


@dataclass(frozen=True)
class _Cell:
    """A run of an experiment that is over."""

    entry: str
    seed: int
    ending: str
    seconds: float
    measure: str
    after: Mapping[str, float | None]
    before: Mapping[str, float | None]


class ExperimentView:
    """Holds the cells that were read already: a cell that is done does not change."""

    def __init__(self, folder: Path) -> None:
        """Read an experiment's folder, later."""
        self.folder = folder
        self._done: dict[str, _Cell] = {}

    def read(self) -> dict[str, Any]:
        """Return how the experiment stands."""
        cells = self.folder / CELLS
        try:
            names = [path.name for path in cells.iterdir() if path.is_dir()]
        except OSError:
            names = []
        for name in names:
            if name not in self._done and (cell := _read_cell(cells / name)):
                self._done[name] = cell
        done = {name: cell for name, cell in self._done.items() if name in names}
        plan = _read(cells / PLAN)
        planned = [each for each in plan.get("cells") or () if isinstance(each, dict) and "cell" in each]
        left = [each for each in planned if each["cell"] not in done]
        record = _read(self.folder / EXPERIMENT)
        held: dict[str, Any] = json_ready(
            {
                "name": self.folder.resolve().name,
                "title": str((record.get("suite") or {}).get("title") or ""),
                "is_finished": bool(record),
                "part": _part(planned),
                "done": len(planned) - len(left) if planned else len(done),
                "total": len(planned) if planned else len(done),
                "seconds_left": None if record else _seconds_left(plan, len(planned) - len(left), len(left)),
                "standing": _standing(done),
                "measure": next((cell.measure for cell in done.values() if cell.measure), ""),
                "cells": [_shown(name, done.get(name), names) for name in _order(planned, done)][:_MOST_CELLS],
            }
        )
        return held


def _order(planned: list[dict[str, Any]], done: Mapping[str, _Cell]) -> list[str]:
    here = [str(each["cell"]) for each in planned]
    return [*here, *sorted(name for name in done if name not in set(here))]


def _shown(name: str, cell: _Cell | None, there: list[str]) -> dict[str, Any]:
    entry, seed = _named(name)
    if cell is None:
        return {"entry": entry, "seed": seed, "state": "running" if name in there else "waiting"}
    after = {group: cell.after.get(group) for group in GROUPS}
    return {"run": name, "entry": entry, "seed": seed, "state": cell.ending, "seconds": cell.seconds, "after": after}


def _named(name: str) -> tuple[str, int]:
    entry, seed, _ = (*name.rsplit("-", 2), "", "")[:3]
    return entry, int(seed) if seed.isdigit() else 0


def _read_cell(folder: Path) -> _Cell | None:
    record = _read(folder / DONE)
    if not record:
        return None
    entry, seed = _named(folder.name)
    problem, run = str(record.get("problem") or ""), record.get("folder")
    seconds = record.get("seconds")
    ending = without_folders(problem).partition(":")[0] or "complete"
    stored = read_stored(folder / Path(str(run)).name) if run else None
    groups = stored.groups if stored else {}
    return _Cell(
        entry,
        seed,
        ending,
        float(seconds) if isinstance(seconds, int | float) else 0.0,
        stored.measure if stored else "",
        {name: group.after for name, group in groups.items()},
        {name: group.before for name, group in groups.items()},
    )


def _standing(done: Mapping[str, _Cell]) -> list[dict[str, Any]]:
    """Return the methods with their means over seeds, the best for new clients first (else for participating ones)."""
    rows: list[dict[str, Any]] = []
    final = [cell for cell in done.values() if cell.seed < FIRST_TUNING_SEED]
    for entry in dict.fromkeys(cell.entry for cell in final):
        cells = [cell for cell in final if cell.entry == entry]
        means = {name: _mean([cell.after.get(name) for cell in cells]) for name in GROUPS}
        without = sum(cell.ending != "complete" for cell in cells)
        rows.append({"entry": entry, "seeds": len(cells), "without_results": without, "after": means})
    measure = next((cell.measure for cell in final if cell.measure), "")
    sign = -look_of(measure).sign
    group = "new" if any(row["after"]["new"] is not None for row in rows) else "participating"
    return sorted(rows, key=lambda row: math.inf if row["after"][group] is None else sign * row["after"][group])


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _part(planned: list[dict[str, Any]]) -> str:
    if not planned:
        return ""
    return "tuning" if _named(str(planned[0]["cell"]))[1] >= FIRST_TUNING_SEED else "final runs"


def _seconds_left(plan: Mapping[str, Any], done: int, left: int) -> float | None:
    started, before = plan.get("started"), plan.get("done_before")
    if not isinstance(started, int | float) or not isinstance(before, int) or done <= before:
        return None
    return (time.time() - started) * left / (done - before)


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            return parse_object(options_text(file))
    except (OSError, ValueError):
        return {}
