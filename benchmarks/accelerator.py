"""Training rounds of the engine `cohort` on an accelerator against one core: clients' turns per second, and memory.

    python -m benchmarks.accelerator [--quick] [--repeats 5]

A round asks every client of the federation once, from choosing clients to the mean; what is told is the median over
rounds of the number of clients by the seconds of the wall. On the processor a round asks ten clients, since its time
grows with their number; on the device also more. Each line is a process of its own. Without an accelerator only the
processor's lines are made.
"""

import json
import os
import sys
import time

import torch

from benchmarks.federations import initial_model, paper_config, rounds
from benchmarks.harness import Report, in_fresh_process, interleave, parse_options
from nufed.common.config import Scalar
from nufed.common.params import num_bytes

MLP: dict[str, Scalar] = {}
CNN: dict[str, Scalar] = {
    "model__name": "fedavg-cnn",
    "model__hidden_sizes": "512",
    "model__activation": "relu",
    "method__batch_size": 10,
    "method__inner_lr": 0.005,
    "method__local_lr": 0.005,
}
PROBLEMS: dict[str, dict[str, Scalar]] = {
    "MLP 80-60, exact, ν = 1": {**MLP, "method__num_inner_steps": 1},
    "MLP 80-60, exact, ν = 5": {**MLP, "method__num_inner_steps": 5},
    "CNN, FedAvg": {**CNN, "method__num_inner_steps": 0},
    "CNN, first-order, ν = 1": {**CNN, "method__num_inner_steps": 1, "method__estimator": "first-order"},
    "CNN, exact, ν = 2": {**CNN, "method__num_inner_steps": 2},
}
ON_PROCESSOR, ON_DEVICE, QUICK = (10,), (10, 50, 200, 1000), (10, 50)
TURNS_OF_CNN = 200
"""Most clients of a CNN that a round asks."""


def measure(problem: str, engine: str, num_clients: int, repeats: int) -> None:
    """Print the seconds of the first round, of a later one, and the MiB that the accelerator's allocator held."""
    config = paper_config(data__num_clients=num_clients, federation__participation_fraction=1.0, **PROBLEMS[problem])
    on_device = os.environ["NUFED_DEVICE"] != "cpu"
    torch.set_num_threads(1)
    run, begun = rounds(engine, config), time.perf_counter()
    run()
    first = time.perf_counter() - begun
    seconds = interleave({"round": run}, repeats=repeats, clock="wall").median("round")
    held = torch.cuda.max_memory_allocated() / 2**20 if on_device else None
    print(json.dumps({"first": first, "seconds": seconds, "memory": held, "model": num_bytes(initial_model(config))}))


def main() -> None:
    """Time every problem and print the table."""
    options = parse_options(__doc__.splitlines()[0], repeats=5, clock="wall")
    report, rows = Report.start("accelerator", options), []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    for problem in PROBLEMS:
        best = 0.0
        lines = [("cpu", engine, count) for engine in ("local", "cohort") for count in ON_PROCESSOR]
        if device:
            counts = QUICK if options.quick else ON_DEVICE
            most = TURNS_OF_CNN if problem.startswith("CNN") else max(counts)
            lines += [("cuda", "cohort", count) for count in counts if count <= most]
        for where, engine, count in lines:
            environment = {"NUFED_DEVICE": where, "NUFED_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            arguments = ("one", problem, engine, str(count), str(options.repeats))
            found = in_fresh_process("benchmarks.accelerator", *arguments, environment=environment)
            turns = count / found["seconds"]
            best = max(best, turns) if where == "cpu" else best
            ratio = turns / best if where != "cpu" else None
            cells = [found["first"], 1e3 * found["seconds"], turns, ratio, found["memory"]]
            rows.append([problem, device if where != "cpu" else "one core", engine, count, *cells])
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
    report.add("Training rounds, τ = 10", header, rows)
    report.write()


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        measure(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
