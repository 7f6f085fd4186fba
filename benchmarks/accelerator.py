"""Training rounds of the engine `cohort` on an accelerator against one core: clients' turns per second, and memory.

    python -m benchmarks.accelerator [--quick] [--repeats 5]

A round asks every client of the federation once, from choosing clients to the mean; what is told is the median over
rounds of the number of clients by the seconds of the wall. On the processor a round asks ten clients, since its time
grows with their number; on the device also more. Each of the two has one process. Without an accelerator only the
processor's lines are made.
"""

import json
import sys
import time
from collections import Counter

import torch

from benchmarks.federations import paper_config, rounds
from benchmarks.harness import Report, in_fresh_process, interleave, parse_options
from nufed.common.config import RunConfig, Scalar

CNN: dict[str, Scalar] = {
    "model__name": "fedavg-cnn",
    "model__hidden_sizes": "512",
    "model__activation": "relu",
    "method__batch_size": 10,
    "method__inner_lr": 0.005,
    "method__local_lr": 0.005,
}
PROBLEMS: dict[str, dict[str, Scalar]] = {
    "MLP 80-60, exact, ν = 1": {"method__num_inner_steps": 1},
    "MLP 80-60, exact, ν = 5": {"method__num_inner_steps": 5},
    "CNN, FedAvg": {**CNN, "method__num_inner_steps": 0},
    "CNN, first-order, ν = 1": {**CNN, "method__num_inner_steps": 1, "method__estimator": "first-order"},
    "CNN, exact, ν = 2": {**CNN, "method__num_inner_steps": 2},
}
COUNTS = {"cpu": (10,), "cuda": (10, 50, 200, 1000)}
MOST = 200
"""Clients of a CNN that a round asks at most."""


def measure(where: str, repeats: int, *, quick: bool) -> None:
    """Print, for each problem, engine and number of clients, what a round took there.

    A line each as it is found, with the seconds of the first round and of a later one and the MiB that the
    accelerator's allocator held; at last all of them as JSON.
    """
    torch.set_num_threads(1)
    found = []
    for problem, changes in PROBLEMS.items():
        for engine in ("local", "cohort") if where == "cpu" else ("cohort",):
            for count in COUNTS[where][: 2 if quick else None]:
                if count <= MOST or not problem.startswith("CNN"):
                    every = {"data__num_clients": count, "federation__participation_fraction": 1.0, **changes}
                    found.append([problem, engine, count, *_timed(engine, paper_config(**every), where, repeats)])
                    print(found[-1], flush=True)
    print(json.dumps(found))


def _timed(engine: str, config: RunConfig, where: str, repeats: int) -> tuple[float, float, float | None]:
    if where != "cpu":
        torch.cuda.reset_peak_memory_stats()
    run, begun = rounds(engine, config), time.perf_counter()
    run()
    first = time.perf_counter() - begun
    seconds = interleave({"round": run}, repeats=repeats, clock="wall").median("round")
    return first, seconds, None if where == "cpu" else torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    """Time every problem and print the table."""
    options = parse_options(__doc__.splitlines()[0], repeats=5, clock="wall")
    report, rows, best = Report.start("accelerator", options), [], Counter[str]()
    names = {"cpu": "one core"} | ({"cuda": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})
    for where, name in names.items():
        environment = {"NUFED_DEVICE": where, "NUFED_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        arguments = ("measure", where, str(options.repeats), "quick" if options.quick else "")
        lines = in_fresh_process("benchmarks.accelerator", *arguments, environment=environment)
        for problem, engine, count, first, seconds, held in lines:
            turns = count / seconds
            best[problem] = max(best[problem], turns) if where == "cpu" else best[problem]
            ratio = None if where == "cpu" else turns / best[problem]
            rows.append([problem, name, engine, count, first, 1e3 * seconds, turns, ratio, held])
    header = [
        "problem",
        "on",
        "engine",
        "clients",
        "first round, s",
        "later, ms",
        "turns a second",
        "÷ best core",
        "MiB",
    ]
    report.add("Training rounds, τ = 10", header, sorted(rows, key=lambda row: [*PROBLEMS].index(row[0])))
    report.write()


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], int(sys.argv[3]), quick=bool(sys.argv[4:5]) and sys.argv[4] == "quick")
    else:
        main()
