"""A training round of 10 of 50 clients: our engines against loops on other libraries and Flower's Ray simulation.

    python -m benchmarks.round [--quick] [--threads 1] [--clock cpu]

Ours is the whole path: choice of clients, messages, codec, training, checks and mean. The loops only train and average.
All use coupled batches for the exact meta-gradient; ours with fresh Hessian batches, which is more work, stands beside.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise

from benchmarks.federations import paper_config, rounds
from benchmarks.harness import Options, Report, Samples, in_fresh_process, interleave, parse_options
from benchmarks.round_peers import exact_loop, pfllib_like
from nufed.common.config import RunConfig

LIBRARIES = ("naive", "learn2learn", "torchopt")
EXACT_BAR, FIRST_ORDER_BAR, RAY_BAR = 0.4, 0.5, 0.05


def main() -> None:
    """Time everything and print the tables."""
    options = parse_options(__doc__.splitlines()[0])
    os.environ["NUFED_NUM_THREADS"] = str(options.threads)
    report = Report.start("round", options)
    _exact(report, options)
    _first_order(report, options)
    _against_ray(report, options)
    report.write()


def _exact(report: Report, options: Options) -> None:
    rows = []
    for num_inner in (1,) if options.quick else (1, 2, 5):
        config = paper_config(method__num_inner_steps=num_inner, method__estimator="unrolled")
        fresh = config.replace(method__estimator="exact")
        variants: dict[str, Callable[[], object]] = {name: exact_loop(name, config) for name in LIBRARIES}
        variants |= {"local": rounds("local", config), "cohort": rounds("cohort", config)}
        variants["cohort, fresh"] = rounds("cohort", fresh)
        samples = _time(variants, options)
        best = samples.fastest(LIBRARIES)
        ratios = [samples.ratio(name, best) for name in ("local", "cohort", "cohort, fresh")]
        rows.append([num_inner, *(1e3 * samples.median(name) for name in variants), best, *ratios, EXACT_BAR])
    header = ["ν", *(f"{name}, ms" for name in variants), "best loop", *_ratios("local", "cohort", "fresh"), "bar"]
    report.add("Exact meta-gradients, milliseconds per round", header, rows)


def _first_order(report: Report, options: Options) -> None:
    config = paper_config(method__num_inner_steps=1, method__estimator="first-order")
    variants = {
        "PFLlib-like": pfllib_like(config),
        "local": rounds("local", config),
        "cohort": rounds("cohort", config),
    }
    samples = _time(variants, options)
    ratios = [samples.ratio(name, "PFLlib-like") for name in ("local", "cohort")]
    header = [*(f"{name}, ms" for name in variants), "local ÷ PFLlib-like", "cohort ÷ PFLlib-like", "bar"]
    rows = [[*(1e3 * samples.median(name) for name in variants), *ratios, FIRST_ORDER_BAR]]
    report.add("First-order meta-gradients, ν = 1, milliseconds per round", header, rows)


def _against_ray(report: Report, options: Options) -> None:
    """Compare wall times: Ray's work is in other processes."""
    config = paper_config(method__num_inner_steps=1, method__estimator="first-order")
    count = 3 if options.quick else 10
    theirs = in_fresh_process("benchmarks.round", "ray", str(count), environment=_QUIET)
    rows = []
    for engine in ("local", "cohort"):
        ours = interleave({engine: rounds(engine, config)}, repeats=options.repeats, clock="wall").median(engine)
        rows.append([engine, 1e3 * ours, 1e3 * theirs["seconds"], ours / theirs["seconds"], RAY_BAR])
    header = ["engine", "ours, ms", "Flower on Ray, ms", "ratio", "bar"]
    report.add(
        f"First-order round against Flower's own simulation, wall time, its median of {count} rounds", header, rows
    )


_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def _time(variants: dict[str, Callable[[], object]], options: Options) -> Samples:
    return interleave(variants, repeats=options.repeats, clock=options.clock)


def _ratios(*engines: str) -> list[str]:
    return [f"{engine} ÷ best" for engine in engines]


def run_on_ray(config: RunConfig, num_rounds: int) -> float:
    """Return the median wall seconds of a round of Flower's FedAvg with our clients on its Ray simulation.

    The first round, in which actors start and load the data, is left out.
    """
    from flwr.app import ArrayRecord, Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from benchmarks.federations import initial_model
    from nufed.client.app import train

    client_app, server_app, ends = ClientApp(), ServerApp(), []
    flat = config.flat()

    @client_app.train()
    def train_with_options(message: Message, context: Context) -> Message:
        context.run_config = flat  # a simulation started from Python has none
        return train(message, context)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        arrays = ArrayRecord(initial_model(config))
        strategy = FedAvg(
            fraction_train=config.federation.participation_fraction, fraction_evaluate=0.0, min_train_nodes=2
        )
        strategy.start(
            grid=grid,
            initial_arrays=arrays,
            num_rounds=num_rounds + 1,
            evaluate_fn=lambda *_: ends.append(time.perf_counter()),  # after each round
        )

    run_simulation(server_app, client_app, config.data.num_clients)
    return statistics.median(after - before for before, after in pairwise(ends[1:]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["ray"]:
        first_order = paper_config(method__num_inner_steps=1, method__estimator="first-order")
        print(json.dumps({"seconds": run_on_ray(first_order, int(sys.argv[2]))}))
    else:
        main()
