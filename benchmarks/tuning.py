"""How near `nufed tune` comes to the best of its full grid, and at which cost.

    python -m benchmarks.tuning [--only digits ...] [--heart heart_disease.npz] [--out FOLDER]

For each data set: (1) `nufed tune --nu 0,1,2,5` on the federation of seed 0; it sees support and validation splits of
participating clients. (2) The full grid of the same space: six values of α times six of β for each ν, judged by the
test splits of the new clients of the federation of seed 0. All points are trained at once (`batched_grid.py`: the same
algorithm on other draws), and the eight best of them are then run, for seeds 0, 1 and 2. (3) The best of these by the
mean over the three, and the tuned choice, on the federations of seeds 3 to 8: their difference is the gap. What the
grid chooses by is of the kind that it is then judged by, which `nufed tune` never sees.

Every run is kept in `tuning-runs.jsonl` in the folder: the same command goes on where it was stopped.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.batched_grid import BatchedGrid
from benchmarks.harness import ROOT, table
from nufed.client.workplace import forget_workplaces
from nufed.common.config import RunConfig
from nufed.common.config.method import rounded
from nufed.common.errors import DivergedError, NothingTrainedError
from nufed.common.events import EventStream
from nufed.common.json_text import parse_object
from nufed.deploy.experiments.archive import standardized_archive
from nufed.deploy.experiments.cells import silent
from nufed.deploy.experiments.runner import Workers
from nufed.deploy.experiments.statistics import t_interval
from nufed.deploy.simulation.engines import prepare, simulate
from nufed.deploy.tuning.judged_run import gradients_per_round
from nufed.deploy.tuning.result import to_json
from nufed.deploy.tuning.space import ALPHA, BETA, GRID_VALUES, INNER, Range, Space
from nufed.deploy.tuning.tuner import Plan, default_budget, tune
from nufed.server.run import ServerOptions

NUS, SPAN = (0, 1, 2, 5), Range(0.005, 3.0)
SPACE = Space(NUS, SPAN, SPAN)
FINALISTS, TUNE_SEEDS, HELD_OUT = 3, 4, 0.2  # the defaults of the command
GRID_SEED, MORE_SEEDS, FRESH_SEEDS = 0, (1, 2), tuple(range(3, 9))
NUM_KEPT = 8
ENGINE = "cohort"
COMMON: dict[str, Any] = {
    "method.num-local-steps": 5,
    "evaluation.num-adapt-steps": 5,
    "evaluation.primary-step": 5,
    "evaluation.interval": 0,
    "federation.participation-fraction": 0.3,
    "data.num-clients": 20,
    "data.num-new-clients": 20,
}
PROBLEMS: dict[str, dict[str, Any]] = {
    "two-groups-digits": {
        "data.source": "digits",
        "data.partition": "iid",
        "data.transform": "two-groups",
        "model.hidden-sizes": "",
        "federation.num-rounds": 20,
    },
    "heart": {
        "data.partition": "by-user",
        "data.num-clients": 4,
        "data.num-new-clients": 0,
        "model.hidden-sizes": "16",
        "model.activation": "tanh",
        "federation.num-rounds": 20,
        "federation.participation-fraction": 1.0,
    },
    "digits": {
        "data.source": "digits",
        "data.partition": "classes",
        "data.classes-per-client": 2,
        "method.max-grad-norm": 3.0,
        "federation.num-rounds": 20,
    },
    "sensors": {"data.source": "sensors", "model.hidden-sizes": "", "federation.num-rounds": 20},
    "sinusoid": {
        "data.source": "sinusoid",
        "data.num-clients": 40,
        "model.hidden-sizes": "40,40",
        "model.activation": "tanh",
        "method.batch-size": 10,
        "method.max-grad-norm": 10.0,
        "federation.num-rounds": 40,
        "federation.participation-fraction": 0.2,
    },
}


@dataclass
class Record:
    """Values of runs that are done, in memory and in a file; holds state because a run is asked for more than once."""

    path: Path
    known: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what the file has."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.known |= {each["key"]: each["value"] for each in map(json.loads, lines)}

    def value(self, key: str, make: Callable[[], float]) -> float:
        """Return a run's value, made if it is not known."""
        if key not in self.known:
            self.known[key] = make()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": self.known[key]}) + "\n")
        return self.known[key]


@dataclass(frozen=True)
class Problem:
    """A data set of the benchmark.

    Attributes:
        name: a key of `PROBLEMS`.
        base: its options.
        record: of its runs.
    """

    name: str
    base: RunConfig
    record: Record

    def value(self, point: Mapping[str, Any], seed: int) -> float:
        """Return the primary metric at s*, on test splits, of new clients if there are any; NaN if the run diverged."""
        config = self.base.updated({**point, "seed": seed})
        key = json.dumps([self.name, seed, point[INNER], point[ALPHA], point[BETA]])
        return self.record.value(key, lambda: trained(config))

    def mean(self, point: Mapping[str, Any], seeds: Sequence[int]) -> float:
        """Return the mean over seeds."""
        return statistics.fmean(self.value(point, seed) for seed in seeds)


def trained(config: RunConfig) -> float:
    """Return what a run's clients say of its model, a loss as minus itself; NaN if it diverged."""
    with tempfile.TemporaryDirectory() as folder, silent():
        prepare(config)
        try:
            with EventStream() as events:
                simulate(config, ServerOptions(out=Path(folder), is_disposable=True, events=events), engine=ENGINE)
        except (DivergedError, NothingTrainedError):
            return math.nan
        finally:
            forget_workplaces()
        summary = parse_object(next(Path(folder).glob("*/summary.json")).read_text(encoding="utf-8"))
    group = summary.get("new") or summary["participating"]
    value = group[group["measure"]][summary["primary_step"]]
    if value is None:
        return math.nan
    return float(value) if group["better"] == "higher" else -float(value)


def grid() -> list[dict[str, Any]]:
    """Return the points of the full grid, evenly spaced in logarithms."""
    ratio = (SPAN.high / SPAN.low) ** (1 / (GRID_VALUES - 1))
    values = [rounded(SPAN.low * ratio**index) for index in range(GRID_VALUES)]
    return [{INNER: nu, ALPHA: alpha, BETA: beta} for nu in NUS for alpha in values for beta in values]


def ranked(problem: Problem, points: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return points by their mean over seeds, the best first; those that diverged last."""

    def score(point: dict[str, Any]) -> float:
        value = problem.mean(point, seeds)
        return value if math.isfinite(value) else -math.inf

    return sorted(points, key=score, reverse=True)


def best_batched(problem: Problem, nus: Sequence[int], number: int) -> list[dict[str, Any]]:
    """Return the best points of the grid with these ν, all trained at once on the federation of the first seed."""
    found: dict[str, float] = {}
    scored = []
    for nu in nus:
        points = [point for point in grid() if point[INNER] == nu]
        keys = [json.dumps([problem.name, "batched", nu, point[ALPHA], point[BETA]]) for point in points]
        if any(key not in problem.record.known for key in keys):
            batched = BatchedGrid(problem.base.updated({INNER: nu, "seed": GRID_SEED}))
            values = batched.values([(point[ALPHA], point[BETA]) for point in points])
            found = dict(zip(keys, values, strict=True))
        scored += [
            (problem.record.value(key, partial(found.__getitem__, key)), point)
            for key, point in zip(keys, points, strict=True)
        ]
    scored = [(value if math.isfinite(value) else -math.inf, point) for value, point in scored]
    return [point for _, point in sorted(scored, key=lambda pair: pair[0], reverse=True)][:number]


def best_of_grid(problem: Problem) -> dict[str, Any]:
    """Return the best point by runs of three seeds, of those that are best when all are trained at once."""
    return ranked(problem, best_batched(problem, NUS, NUM_KEPT), [GRID_SEED, *MORE_SEEDS])[0]


def tuned(problem: Problem, out: Path) -> dict[str, Any]:
    """Return what `nufed tune` chooses with its defaults, as the options and the cost of its `result.json`."""
    plan = Plan(default_budget(SPACE, FINALISTS, TUNE_SEEDS), FINALISTS, TUNE_SEEDS, HELD_OUT)
    told: Callable[[str], None] = lambda line: print(f"  {line}", file=sys.stderr, flush=True)  # noqa: E731
    return to_json(tune(problem.base, SPACE, plan, Workers(out / f"tune-{problem.name}", 1, ENGINE, told)))


def measure(problem: Problem, out: Path) -> dict[str, Any]:
    """Return the gap of the tuned choice to the best of the grid, and the costs."""
    best = best_of_grid(problem)
    found = tuned(problem, out)
    choice = {INNER: found["chosen"]["num_inner_steps"], ALPHA: problem.base.method.inner_lr}
    choice |= {key: found["chosen"][key] for key in (ALPHA, BETA) if key in found["chosen"]}
    pairs = {seed: problem.value(best, seed) - problem.value(choice, seed) for seed in FRESH_SEEDS}
    gap = t_interval(list(pairs.values()))
    length = problem.base.federation.num_rounds
    grid_gradients = sum(length * gradients_per_round(problem.base.updated(point)) for point in grid())
    return {
        "name": problem.name,
        "measure": found["measure"],
        "chosen": choice,
        "best": best,
        "chosen_value": problem.mean(choice, FRESH_SEEDS),
        "best_value": problem.mean(best, FRESH_SEEDS),
        "gap": [gap.mean, gap.low, gap.high],
        "runs": found["cost"]["runs"],
        "grid_runs": len(grid()),
        "gradients_share": found["cost"]["gradients"] / grid_gradients,
        "sentence": found["sentence"],
    }


def base_of(name: str, heart: Path | None, out: Path) -> RunConfig | None:
    """Return a data set's options; None for the heart disease data where they are not given."""
    values = {**COMMON, **PROBLEMS[name]}
    if name == "heart":
        if heart is None:
            return None
        values["data.source"] = f"npz:{standardized_archive(heart, out / 'heart.npz')}"
    return RunConfig().updated(values)


def shown(point: Mapping[str, Any]) -> str:
    """Return options of a run in short."""
    return f"ν = {point[INNER]}, α = {point[ALPHA]:.3g}, β = {point[BETA]:.3g}"


def worth(value: float, measure_name: str) -> str:
    """Return a value as a reader takes it: a share in percent, a loss as it is."""
    return f"{-value:.3g}" if measure_name == "loss" else f"{100 * value:.1f} %"


def gap_words(row: Mapping[str, Any]) -> str:
    """Return the gap in points with its interval, or as a share of the loss."""
    if row["measure"] == "loss":
        return f"{100 * row['gap'][0] / -row['best_value']:+.0f} % of the loss"
    mean, low, high = (100 * each for each in row["gap"])
    return f"{mean:+.1f} [{low:.1f}, {high:.1f}]"


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    header = ["data", "tuned", "", "best of the grid", "", "gap in points", "runs", "of the grid", "gradients"]
    lines = []
    for row in rows:
        values = [worth(row[key], row["measure"]) for key in ("chosen_value", "best_value")]
        share = f"1 / {row['grid_runs'] / row['runs']:.1f}"
        cost = [f"{row['runs']:.1f}", share, f"1 / {1 / row['gradients_share']:.1f}"]
        lines.append(
            [row["name"], shown(row["chosen"]), values[0], shown(row["best"]), values[1], gap_words(row), *cost]
        )
    return table(header, lines)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--only", nargs="*", choices=PROBLEMS, default=list(PROBLEMS), help="data sets")
    parser.add_argument("--heart", type=Path, help="archive of the heart disease data; without it they are left out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it as JSON."""
    options = parsed(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    record = Record(options.out / "tuning-runs.jsonl")
    rows = []
    for name in options.only:
        base = base_of(name, options.heart, options.out)
        if base is None:
            continue
        problem = Problem(name, base, record)
        started = time.process_time()
        rows.append(measure(problem, options.out))
        print(f"{name}: {time.process_time() - started:.0f} s", file=sys.stderr, flush=True)
        (options.out / "tuning.json").write_text(json.dumps(rows, indent=2))
    print(printed(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
