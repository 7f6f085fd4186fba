"""Rounds and evaluations of methods, one client after another and many at once, on the settings of two suites.

    python -m benchmarks.methods [--quick] [--threads 1] [--clock cpu]

A round is what a run makes of it, from choosing clients to the mean, without evaluation; an evaluation is that of all
participating clients. Where nothing is federated, an evaluation includes the training, of 12 to 20 rounds alone. Step
sizes are 0.1 throughout: they change no time. Omniglot is read from `NUFED_DATA_ROOT`, and left out without it.
"""

import os

from benchmarks.federations import evaluations, rounds
from benchmarks.harness import Options, Report, interleave, parse_options
from nufed.common.config import RunConfig
from nufed.common.errors import NufedError
from nufed.common.methods import find_method
from nufed.deploy.experiments.suite import Suite

SUITES = ("omniglot-symbols", "sinusoid-few-shot")
METHODS = (
    *("meta-fedavg-5", "anil", "meta-sgd", "aruba", "fedprox", "fedbabu"),
    *("pfedme", "ditto", "fedrep", "fedper", "local-only"),
)
QUICK = ("meta-fedavg-5", "anil", "local-only")
ENGINES = ("local", "cohort")


def main() -> None:
    """Time every method on both settings and print the tables."""
    options = parse_options(__doc__.splitlines()[0], repeats=5)
    os.environ["NUFED_NUM_THREADS"] = str(options.threads)
    report = Report.start("methods", options)
    parts = [f"{what}: {engine}, ms" for what in ("round", "evaluation") for engine in ENGINES]
    header = ["method", *parts[:2], "÷", *parts[2:], "÷"]
    for suite in SUITES[1 if options.quick else 0 :]:
        try:
            rows = [_row(suite, name, options) for name in (QUICK if options.quick else METHODS)]
        except NufedError as error:
            print(f"\n{suite} is left out: {error}")
            continue
        report.add(suite, header, rows)
    report.write()


def configured(suite: str, name: str) -> RunConfig:
    """Return the suite's setting with a method."""
    alone = name == "local-only"
    return RunConfig().updated(
        {
            **Suite.load(suite).options,
            **find_method(name).options(),
            "method.inner-lr": 0.1,
            "method.local-lr": 0.1,
            "data.num-new-clients": 0,
            "federation.num-rounds": 200 if alone else 1,  # of which each client takes part in a share
        }
    )


def _row(suite: str, name: str, options: Options) -> list[object]:
    config, cells = configured(suite, name), []
    for make in (rounds, evaluations):
        if make is rounds and name == "local-only":
            cells += [None, None, None]
            continue
        runs = {engine: make(engine, config) for engine in ENGINES}
        samples = interleave(runs, repeats=options.repeats, clock=options.clock)
        cells += [1000 * samples.median(engine) for engine in ENGINES] + [samples.ratio("cohort", "local")]
    return [name, *cells]


if __name__ == "__main__":
    main()
