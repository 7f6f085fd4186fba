"""Adaptation curves of 50 clients, S = 10 full-batch steps: our engines against a loop as one writes it in PyTorch.

    python -m benchmarks.evaluation [--quick] [--threads 1] [--clock cpu]

Ours go through messages, codec and strategy; the loop has none of these. All are checked to count the same correct
answers.
"""

import copy
import os
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.federations import evaluations, paper_config
from benchmarks.harness import Options, Report, interleave, parse_options
from nufed.common.config import RunConfig
from nufed.common.data import load_federation
from nufed.common.models import build_model
from nufed.common.settings import Settings

BAR = 0.4
VARIANTS = ("loop", "local", "cohort")
SOURCES = {"digits_like": "8 x 8 inputs, 20-100 examples", "mnist_like": "28 x 28 inputs, 80-400 examples"}


def main() -> None:
    """Time everything and print the table."""
    options = parse_options(__doc__.splitlines()[0])
    os.environ["NUFED_NUM_THREADS"] = str(options.threads)
    report = Report.start("evaluation", options)
    header = [
        "clients",
        *(f"{name}, ms" for name in VARIANTS),
        *(f"{name} ÷ loop" for name in ("local", "cohort")),
        "bar",
        "largest difference of accuracy",
    ]
    report.add("Adaptation curves of 50 clients, milliseconds", header, [_row(name, options) for name in SOURCES])
    report.write()


def plain_loop(config: RunConfig) -> Callable[[], list[float]]:
    """Return a function that gives the clients' mean accuracy after 0 … S steps, one client after another."""
    federation = load_federation(config.data, seed=config.seed, dtype=torch.float32, settings=Settings())
    model, measure = build_model(config.model, federation.task, seed=config.seed), nn.CrossEntropyLoss()

    def curves() -> list[float]:
        totals = [0.0] * (config.evaluation.num_adapt_steps + 1)
        for client in federation.clients:
            own = copy.deepcopy(model)
            optimizer = torch.optim.SGD(own.parameters(), lr=config.method.inner_lr)
            for step in range(len(totals)):
                if step:
                    optimizer.zero_grad()
                    measure(own(client.support.inputs), client.support.targets).backward()
                    optimizer.step()
                with torch.no_grad():
                    outputs = own(client.test.inputs)
                    measure(outputs, client.test.targets)
                totals[step] += float((outputs.argmax(1) == client.test.targets).double().mean())
        return [total / len(federation.clients) for total in totals]

    return curves


def _row(source: str, options: Options) -> list[object]:
    config = paper_config(source, evaluation__num_adapt_steps=10)
    engines = {engine: evaluations(engine, config) for engine in ("local", "cohort")}
    loop = plain_loop(config)
    expected = loop()
    difference = max(
        abs(a - b) for run in engines.values() for a, b in zip(run()["test-accuracy"], expected, strict=True)
    )
    samples = interleave({"loop": loop, **engines}, repeats=options.repeats, clock=options.clock)
    medians = [1e3 * samples.median(name) for name in VARIANTS]
    ratios = [samples.ratio(engine, "loop") for engine in engines]
    return [SOURCES[source], *medians, *ratios, BAR, difference]


if __name__ == "__main__":
    main()
