"""What each aggregation rule stands: accuracy of honest clients under attack, on digits.

    python -m benchmarks.robustness [--method fedavg] [--rounds 20] [--bucket-size 1] [--partition classes]
        [--rules mean multi-krum ...]

Twenty clients, all asked in each round, of which none, one or four attack; the rules are told four throughout, since
nobody knows the number. Accuracy in percent after five steps of fine-tuning, mean over the honest of the 20 clients,
and behind the stroke over ten clients that take no part in training.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nufed.common.config import RunConfig
from nufed.common.methods import find_method
from nufed.deploy.simulation.attacks import ATTACKS
from nufed.deploy.simulation.engines import simulate_checked
from nufed.server.run import ServerOptions
from nufed.strategy.aggregation import AGGREGATION_RULES

NUM_ATTACKERS = 4
COLUMNS: list[tuple[str, int] | None] = [None, ("scaled", 1), *((attack, NUM_ATTACKERS) for attack in ATTACKS)]


def measure(config: RunConfig, attack: tuple[str, int] | None) -> str:
    """Return the two accuracies of a run, e.g. `97.1 / 95.0`."""
    with tempfile.TemporaryDirectory() as folder:
        options = ServerOptions(out=Path(folder), is_disposable=True)
        simulate_checked(config, options, engine="cohort", attack=attack)
        [summary] = Path(folder).glob("*/summary.json")
        found = json.loads(summary.read_text(encoding="utf-8"))
    step = config.evaluation.primary_step
    return " / ".join(f"{100 * found[group]['accuracy'][step]:.1f}" for group in ("participating", "new"))


def rows(method: str, rounds: int, bucket_size: int, partition: str, rules: Sequence[str]) -> Iterator[list[str]]:
    """Yield the table's lines, each as soon as it is measured."""
    yield ["rule", *("no attack" if each is None else f"{each[0]}, {each[1]}" for each in COLUMNS)]
    base = RunConfig.parse(find_method(method).options()).replace(
        data__source="digits",
        data__partition=partition,
        data__num_clients=20,
        data__num_new_clients=10,
        federation__num_rounds=rounds,
        federation__participation_fraction=1.0,
        evaluation__num_adapt_steps=5,
        evaluation__interval=0,
    )
    for rule in rules:
        robust = {"federation.num-attackers": NUM_ATTACKERS, "federation.bucket-size": bucket_size}
        config = base.updated({"federation.aggregation": rule, **(robust if rule != "mean" else {})})
        yield [f"`{rule}`", *(measure(config, attack) for attack in COLUMNS)]


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="fedavg")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bucket-size", type=int, default=1)
    parser.add_argument("--partition", default=RunConfig().data.partition)
    parser.add_argument("--rules", nargs="+", default=list(AGGREGATION_RULES))
    given = parser.parse_args()
    for number, row in enumerate(rows(given.method, given.rounds, given.bucket_size, given.partition, given.rules)):
        print(f"| {' | '.join(row)} |", flush=True)
        if number == 0:
            print("|---" * len(row) + "|", flush=True)


if __name__ == "__main__":
    main()
