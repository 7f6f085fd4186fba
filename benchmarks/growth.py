"""How seconds per round grow: with clients n, chosen clients m, local steps τ, inner steps ν and the model's size.

    python -m benchmarks.growth [--quick] [--threads 1] [--clock cpu]

The exponent is the slope of log seconds over log x by least squares. One is growth in proportion; less means that a
part does not grow.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.federations import paper_config, rounds
from benchmarks.harness import Options, Report, interleave, parse_options
from nufed.common.config import RunConfig

BAR = 1.05


@dataclass(frozen=True)
class Axis:
    """One quantity that grows.

    Attributes:
        name: for the table.
        values: increasing.
        configure: value -> configuration.
        bar: largest exponent that is good enough; None without one.
    """

    name: str
    values: Sequence[int]
    configure: Callable[[int], RunConfig]
    bar: float | None = BAR


def _config(*, num_clients: int = 20, chosen: int = 10, **changes: int | str) -> RunConfig:
    options = {"method__num_local_steps": 5, "method__estimator": "exact", **changes}
    fraction = chosen / num_clients
    return paper_config(
        "digits_like", data__num_clients=num_clients, federation__participation_fraction=fraction, **options
    )


AXES = (
    Axis("n, clients (10 chosen)", (10, 40, 160), lambda n: _config(num_clients=n), None),
    Axis("m, chosen clients", (5, 10, 20, 40), lambda m: _config(num_clients=40, chosen=m)),
    Axis("τ, local steps", (2, 4, 8, 16), lambda steps: _config(method__num_local_steps=steps)),
    Axis("ν, inner steps", (1, 2, 4, 8), lambda steps: _config(method__num_inner_steps=steps)),
    Axis("width of two hidden layers", (64, 128, 256, 512), lambda h: _config(model__hidden_sizes=f"{h},{h}"), None),
)


def main() -> None:
    """Time everything and print the tables."""
    options = parse_options(__doc__.splitlines()[0])
    os.environ["NUFED_NUM_THREADS"] = str(options.threads)
    report = Report.start("growth", options)
    for engine in ("local", "cohort"):
        rows = [_row(axis, engine, options) for axis in AXES]
        header = ["growing", "values", "ms per round", "exponent", "bar"]
        report.add(f"Engine `{engine}`, exact, ν = 1, τ = 5, batches of 40 of 8 x 8 inputs", header, rows)
    report.write()


def _row(axis: Axis, engine: str, options: Options) -> list[object]:
    values = [axis.values[0], axis.values[-2]] if options.quick else list(axis.values)
    variants = {str(value): rounds(engine, axis.configure(value)) for value in values}
    samples = interleave(variants, repeats=options.repeats, clock=options.clock)
    seconds = [samples.median(str(value)) for value in values]
    milliseconds = ", ".join(f"{1e3 * second:.3g}" for second in seconds)
    return [axis.name, ", ".join(map(str, values)), milliseconds, exponent(values, seconds), axis.bar]


def exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the least-squares slope of log seconds over log value."""
    x, y = [math.log(value) for value in values], [math.log(second) for second in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


if __name__ == "__main__":
    main()
