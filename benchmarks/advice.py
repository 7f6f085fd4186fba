"""How well the step sizes that `nufed theory` advises train, beside the best of a grid.

    python -m benchmarks.advice [--only digits ...] [--heart heart_disease.npz] [--out FOLDER]

For the data sets of `benchmarks.tuning` and ν = 1, 2 and 5: (1) what `nufed theory` advises, measured on ten
participating clients of the federation of seed 0, without the bound of the meta-gradient's length, which the theory
does not cover.
(2) Runs with this α and β, with the α and β that Theorem 8 covers, and with the best of six values of α times six of β,
all of them trained at once on the federation of seed 0 (`batched_grid.py`); on the federations of seeds 3 to 5, judged
at s* by the test splits of new clients, or participating ones where there are none.

Runs are kept in `tuning-runs.jsonl` in the folder, which `benchmarks.tuning` shares.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, table
from benchmarks.tuning import PROBLEMS, Problem, Record, base_of, best_batched, worth
from nufed.common.config import RunConfig
from nufed.common.config.method import rounded
from nufed.common.json_text import parse_object
from nufed.deploy.tuning.space import ALPHA, BETA, INNER

NUS, SEEDS = (1, 2, 5), (3, 4, 5)
NOT_COVERED = "method.max-grad-norm"


def advised(base: RunConfig) -> list[Mapping[str, Any]]:
    """Return what `nufed theory` says of each ν."""
    changes = [f"--set={key}={value}" for key, value in base.given().items() if key != NOT_COVERED]
    program = "import sys; from nufed.deploy.commands.cli import main; raise SystemExit(main(sys.argv[1:]))"
    arguments = ["theory", "--json", "--nu", ",".join(map(str, NUS)), *changes]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nufed theory: {done.stderr}")
    return list(parse_object(done.stdout)["advice"])


def measured(problem: Problem) -> Iterator[dict[str, Any]]:
    """Yield for each ν what was advised, and what the three choices train to."""
    for said in advised(problem.base):
        nu = said["num_inner_steps"]
        best = best_batched(problem, [nu], 1)[0]
        points = {
            "advised": {INNER: nu, ALPHA: said["trial_inner_lr"], BETA: said["trial_local_lr"]},
            "best": best,
            "covered": {INNER: nu, ALPHA: said["inner_lr"], BETA: rounded(said["local_lr"])},
        }
        values = {name: problem.mean(point, SEEDS) for name, point in points.items()}
        row = {"name": problem.name, "nu": nu, "points": points, "values": values, "is_vacuous": said["is_vacuous"]}
        print(json.dumps(row), file=sys.stderr, flush=True)
        yield row


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = []
    for row in rows:
        measure = "loss" if row["values"]["best"] < 0 else "accuracy"
        cells = []
        for kind, point in row["points"].items():
            value = row["values"][kind]
            shown = worth(value, measure) if math.isfinite(value) else "diverged"
            cells += [f"{point[ALPHA]:.3g}, {point[BETA]:.3g}", shown]
        lines.append([row["name"], row["nu"], *cells, "nothing" if row["is_vacuous"] else "something"])
    header = ["data", "ν", "α, β to begin with", "trains to", "best of the grid", "trains to", "covered", "trains to"]
    return table([*header, "the bound says"], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it as JSON."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--only", nargs="*", choices=PROBLEMS, default=list(PROBLEMS), help="data sets")
    parser.add_argument("--heart", type=Path, help="archive of the heart disease data; without it they are left out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    record = Record(options.out / "tuning-runs.jsonl")
    rows: list[dict[str, Any]] = []
    for name in options.only:
        if base := base_of(name, options.heart, options.out):
            rows += measured(Problem(name, base, record))
            (options.out / "advice.json").write_text(json.dumps(rows, indent=2))
    print(printed(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
