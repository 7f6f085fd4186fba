"""Adaptation curves of 50 clients, S = 10 full-batch steps: all together against one after another.

    python -m benchmarks.evaluation [--quick] [--threads 1] [--clock cpu]

Both go through messages, codec and strategy, and are checked to count the same correct answers.
"""

import os

from benchmarks.federations import evaluations, paper_config
from benchmarks.harness import Options, Report, interleave, parse_options

BAR = 0.4
SOURCES = {"digits_like": "8 x 8 inputs, 20-100 examples", "mnist_like": "28 x 28 inputs, 80-400 examples"}


def main() -> None:
    """Time everything and print the table."""
    options = parse_options(__doc__.splitlines()[0])
    os.environ["NUFED_NUM_THREADS"] = str(options.threads)
    report = Report.start("evaluation", options)
    header = ["clients", "local, ms", "cohort, ms", "cohort ÷ local", "bar", "largest difference of accuracy"]
    report.add("Adaptation curves of 50 clients, milliseconds", header, [_row(name, options) for name in SOURCES])
    report.write()


def _row(source: str, options: Options) -> list[object]:
    config = paper_config(source, evaluation__num_adapt_steps=10)
    variants = {engine: evaluations(engine, config) for engine in ("local", "cohort")}
    curves = [variants[engine]()["test-accuracy"] for engine in variants]
    difference = max(abs(ours - expected) for ours, expected in zip(*curves, strict=True))
    samples = interleave(variants, repeats=options.repeats, clock=options.clock)
    medians = [1e3 * samples.median(engine) for engine in variants]
    return [SOURCES[source], *medians, samples.ratio("cohort", "local"), BAR, difference]


if __name__ == "__main__":
    main()
