"""What record-level privacy costs: accuracy against ε, and time and memory against the same training without it.

    python -m benchmarks.record_privacy [--heart heart_disease.npz] [--seeds 3] [--rounds 20]
        [--epsilons 8 4 2] [--cost]

Four hospitals (heart disease, of four cities; inputs are scaled by constants that any textbook gives, empty cells get
their middle) and digits dealt to four clients of five classes each. Accuracy in percent on the clients' test examples
after five steps of fine-tuning, mean over clients and seeds. `--cost` measures a client's round instead.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import in_fresh_process, peak_memory
from benchmarks.peak_memory import PROMPT
from nufed.client.workplace import workplace
from nufed.common.config import RunConfig
from nufed.common.meta.local_update import Stream, local_update, private_update
from nufed.common.meta.private_steps import Protection
from nufed.common.params import model_params
from nufed.common.privacy.noise import RandomSource
from nufed.common.settings import process_settings
from nufed.deploy.simulation.engines import simulate_checked
from nufed.server.run import ServerOptions

NUS = (0, 1, 3)
TYPICAL = {  # of a column: its middle and its spread, known without these data
    "age": (55, 10),
    "sex": (0.5, 0.5),
    "cp": (2.5, 1),
    "trestbps": (130, 20),
    "chol": (250, 50),
    "fbs": (0, 1),
    "restecg": (0, 1),
    "thalach": (140, 25),
    "exang": (0, 1),
    "oldpeak": (1, 1),
    "slope": (2, 1),
    "ca": (0.5, 1),
    "thal": (5, 2),
}
SHARED: dict[str, Any] = {
    "data.num-clients": 4,
    "data.num-new-clients": 0,
    "model.name": "linear",
    "federation.participation-fraction": 1.0,
    "method.num-local-steps": 1,
    "method.batch-size": 64,
    "method.local-lr": 0.5,
    "method.inner-lr": 0.1,
    "evaluation.interval": 0,
    "evaluation.num-adapt-steps": 5,
}
DIGITS = {"data.source": "digits", "data.partition": "classes", "data.classes-per-client": 5}


def scaled_heart(source: Path, target: Path) -> dict[str, Any]:
    """Write the archive with prepared inputs; return the options of a run on it."""
    with np.load(source) as archive:
        content = {name: archive[name] for name in archive.files}
    middle, spread = (np.array([pair[end] for pair in TYPICAL.values()]) for end in (0, 1))
    for name in ("x_train", "x_test"):
        prepared = np.nan_to_num((content[name] - middle) / spread, nan=0.0).clip(-3, 3)
        content[name] = prepared.astype(np.float32)
    np.savez(target, **content)
    return {"data.source": f"npz:{target}", "data.input-scale": "none"}


def accuracy(options: dict[str, Any], epsilon: float, seeds: int) -> str:
    """Return the mean accuracy over seeds, and how far the seeds are apart, e.g. `77.1 ± 1.2`."""
    private = {"privacy.dp": "record", "privacy.clip": 1.0, "privacy.epsilon": epsilon, "privacy.publish": "evaluation"}
    found = []
    for seed in range(seeds):
        config = RunConfig().updated({**SHARED, **options, **(private if epsilon else {}), "seed": seed})
        with tempfile.TemporaryDirectory() as folder:
            simulate_checked(config, ServerOptions(out=Path(folder), is_disposable=True), engine="local")
            [path] = Path(folder).glob("*/summary.json")
            summary = json.loads(path.read_text(encoding="utf-8"))
        found.append(100 * summary["participating"]["accuracy"][config.evaluation.num_adapt_steps])
    return f"{statistics.mean(found):.1f} ± {statistics.stdev(found) if seeds > 1 else 0:.1f}"


def print_accuracies(data: dict[str, dict[str, Any]], epsilons: Sequence[float], arguments: argparse.Namespace) -> None:
    """Print a line for each data set and ν."""
    print("| data | ν |", " | ".join(f"ε = {each:g}" if each else "without" for each in (0, *epsilons)), "|")
    print("| --- " * (3 + len(epsilons)) + "|")
    for name, options in data.items():
        for nu in NUS:
            method = {"method.num-inner-steps": nu, "federation.num-rounds": arguments.rounds}
            cells = [accuracy({**options, **method}, each, arguments.seeds) for each in (0, *epsilons)]
            print(f"| {name} | {nu} | {' | '.join(cells)} |", flush=True)


def rounds_of(model: str, nu: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a client's round on digits, without and with privacy."""
    config = RunConfig().updated({**SHARED, **DIGITS, "model.name": model, "method.num-inner-steps": nu})
    place = workplace(config.flat(), {"partition-id": 0}, process_settings())
    given = place.training_loss, model_params(place.model), place.data.support, config.method, Stream(0, "a", 1)
    guard = Protection(1.0, 1.0, 1.0, RandomSource())
    return lambda: local_update(*given), lambda: private_update(*given, protection=guard)


def measured_here(model: str, nu: int) -> dict[str, list[float]]:
    """Return milliseconds of processor time, and MiB beyond the model and the data, without and with privacy."""
    variants = rounds_of(model, nu)
    found: dict[str, list[float]] = {"ms": [], "MiB": []}
    for run in variants:
        run()
        spans = []
        for _ in range(10):
            started = time.process_time()
            run()
            spans.append(time.process_time() - started)
        found["ms"].append(1000 * statistics.median(spans))
        found["MiB"].append(peak_memory(run) / 2**20)
    return found


def print_costs() -> None:
    """Print what one client's round costs without and with privacy."""
    print("| model | ν | without, ms | with, ms | ratio | without, MiB | with, MiB |")
    print("| --- " * 7 + "|")
    for model in ("linear", "mlp"):
        for nu in NUS:
            one = in_fresh_process("benchmarks.record_privacy", "--one", model, str(nu), environment=PROMPT)
            (plain, private), (less, more) = one["ms"], one["MiB"]
            times = f"{plain:.1f} | {private:.1f} | {private / plain:.1f}"
            print(f"| {model} | {nu} | {times} | {less:.1f} | {more:.1f} |", flush=True)


def main() -> None:
    """Print a table in Markdown."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measured_here(sys.argv[2], int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heart", type=Path, help="archive of the four hospitals; without it they are left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[8.0, 4.0, 2.0])
    parser.add_argument("--cost", action="store_true", help="measure time and memory instead")
    arguments = parser.parse_args()
    if arguments.cost:
        print_costs()
        return
    with tempfile.TemporaryDirectory() as folder:
        data = {"digits": DIGITS}
        if arguments.heart:
            data = {"heart disease": scaled_heart(arguments.heart, Path(folder) / "heart.npz"), **data}
        print_accuracies(data, arguments.epsilons, arguments)


if __name__ == "__main__":
    main()
