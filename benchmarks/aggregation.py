"""The server's mean of a model of 10 million parameters: time and peak memory against stacking, and against reading.

    python -m benchmarks.aggregation [--quick]

Each measurement is a process of its own. Twelve different updates stand for any number of them. `reading` is the sum of
all elements of each update, the least that any mean must do.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.harness import Report, in_fresh_process, parse_options, peak_memory
from nufed.common.params import Params
from nufed.common.rng import torch_generator
from nufed.strategy.aggregation import RunningMean

NUM_LAYERS, NUM_DISTINCT = 62, 12


def updates(count: int, size: int) -> Iterator[Params]:
    """Yield `count` updates of `size` parameters in 62 layers, made before the first one is given out."""
    generator = torch_generator(0, "benchmark", "updates")
    distinct = [
        {f"layer-{number}": torch.randn(size // NUM_LAYERS, generator=generator) for number in range(NUM_LAYERS)}
        for _ in range(min(count, NUM_DISTINCT))
    ]
    return (distinct[number % len(distinct)] for number in range(count))


def ours(given: Iterator[Params], count: int) -> None:
    """Fold one update after another, with all checks."""
    first = next(given)
    mean = RunningMean(first, count)
    mean.fold(first)
    for params in given:
        mean.fold(params)
    mean.result()


def stacked(given: Iterator[Params], count: int) -> None:  # noqa: ARG001 - the signature of the methods
    """Hold all updates and average them layer by layer with NumPy."""
    kept = [{name: np.array(tensor) for name, tensor in params.items()} for params in given]
    _ = {name: np.average(np.stack([each[name] for each in kept]), axis=0) for name in kept[0]}


def reading(given: Iterator[Params], count: int) -> None:  # noqa: ARG001 - the signature of the methods
    """Read every element once."""
    for params in given:
        for tensor in params.values():
            tensor.sum()


METHODS: dict[str, Callable[[Iterator[Params], int], None]] = {"reading": reading, "ours": ours, "numpy stack": stacked}


def main() -> None:
    """Measure everything and print the table."""
    options = parse_options(__doc__.splitlines()[0])
    size, counts = (1_000_000, (10, 100)) if options.quick else (10_000_000, (10, 100, 1000))
    report = Report.start("aggregation", options)
    rows = []
    for count in counts:
        facts = {}
        for method in METHODS:
            if method == "numpy stack" and count * size > 200_000_000:
                continue  # 8 bytes for each parameter of each update: beyond 1.6 GB it tells of the machine only
            arguments = (method, str(count), str(size), options.clock)
            facts[method] = in_fresh_process("benchmarks.aggregation", *arguments)
        one = facts["reading"]["seconds"]
        for method, fact in facts.items():
            ms = 1e3 * fact["seconds"]
            rows.append([count, method, ms, ms / count, fact["seconds"] / one, fact["peak"] / 2**20])
    header = ["updates", "method", "ms", "ms per update", "÷ reading", "peak, MiB"]
    report.add(f"Mean of updates of {size:,} parameters ({4 * size / 2**20:.0f} MiB each)", header, rows)
    report.write()


def measure(method: str, count: int, size: int, clock: str) -> None:
    """Print seconds and peak memory of one method as JSON."""
    torch.set_num_threads(1)
    now = time.process_time if clock == "cpu" else time.perf_counter
    given, seconds = updates(count, size), []

    def work() -> None:
        started = now()
        METHODS[method](given, count)
        seconds.append(now() - started)

    print(json.dumps({"peak": peak_memory(work), "seconds": seconds[0]}))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in METHODS:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
