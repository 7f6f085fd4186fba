"""How wrong Hessian-free is: ‖hessian-free - exact‖ / ‖exact - first-order‖, so that 1 loses the whole correction.

python -m benchmarks.hessian_free_error [--quick]
"""

import statistics
import warnings

import torch
from torch import Tensor

from benchmarks.harness import Report, parse_options
from benchmarks.problems import problem
from nufed.common.examples import Batch
from nufed.common.meta.exact import exact
from nufed.common.meta.first_order import first_order
from nufed.common.meta.hessian_free import Difference, hessian_free
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.params import Params
from nufed.common.steps.cautions import Caution
from nufed.common.steps.eager_steps import eager_steps

INNER_LR, NU = 0.1, 2
NETWORKS = {
    "mlp": "ELU",
    "mlp-tanh": "tanh",
    "mlp-relu": "ReLU",
    "cnn": "ELU, max-pool",
    "cnn-tanh-avg": "tanh, average-pool",
}
DELTAS = {
    ("normalized", "same"): (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    ("relative", "same"): (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 1e-2),
    ("normalized", "float64"): (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3),
    ("relative", "float64"): (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4),
}


def flat(params: Params) -> Tensor:
    return torch.cat([tensor.double().reshape(-1) for tensor in params.values()])


def in_double(batches: MetaBatches) -> MetaBatches:
    inner = tuple(Batch(batch.inputs.double(), batch.targets) for batch in batches.inner)
    return MetaBatches(inner, Batch(batches.outer.inputs.double(), batches.outer.targets), inner)


def errors(network: str, differences: list[Difference], seeds: range) -> list[list[float]]:
    """Return for each difference the error on each seed's batches, against exact in float64."""
    given = problem(network)
    double = {name: tensor.double() for name, tensor in given.params.items()}
    found: list[list[float]] = [[] for _ in differences]
    for seed in seeds:
        batches = given.batches(NU, seed=seed)
        wide = in_double(batches)
        reference = flat(exact(eager_steps(given.loss, INNER_LR))(double, wide).gradient)
        correction = (reference - flat(first_order(eager_steps(given.loss, INNER_LR))(double, wide).gradient)).norm()
        for difference, into in zip(differences, found, strict=True):
            estimate = hessian_free(eager_steps(given.loss, INNER_LR), difference=difference)(given.params, batches)
            into.append(float((flat(estimate.gradient) - reference).norm() / correction))
    return found


def main() -> None:
    options = parse_options(__doc__ or "")
    warnings.simplefilter("ignore", Caution)
    report = Report.start("hessian_free_error", options)
    seeds = range(2 if options.quick else 5)
    networks = {name: kind for name, kind in NETWORKS.items() if not (options.quick and name.startswith("cnn"))}
    for sides in ("central", "forward"):
        for (displacement, dtype), deltas in DELTAS.items():
            rows: list[list[object]] = []
            for network, kind in networks.items():
                differences = [Difference(delta, displacement, sides, dtype) for delta in deltas]  # type: ignore[arg-type]
                found = errors(network, differences, seeds if network.startswith("mlp") else seeds[:2])
                cells = [f"{statistics.median(each):.1g} ({max(each):.1g})" for each in found]
                rows.append([f"{network} ({kind})", *cells])
            title = f"{sides}, {displacement}, {'float32' if dtype == 'same' else 'float64'}: median (largest) error"
            report.add(title, ["network \\ δ", *(f"{delta:.0e}" for delta in deltas)], rows)
    report.write(nu=NU, inner_lr=INNER_LR, batch_size=40)


if __name__ == "__main__":
    main()
