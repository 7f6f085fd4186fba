"""Time of one meta-gradient: every estimator and the peers, in units of one plain forward and backward pass.

    python -m benchmarks.meta_gradient [--quick] [--threads N] [--clock cpu|wall] [--compile]

Batches are coupled (H_j = I_j), the problem that the peers solve; `exact` on fresh Hessian batches stands beside it.
The steps of the fully connected network are computed by hand; `autograd` stands for double backward, as for all others.
With `--compile`, the compiled estimators of the fully connected network are timed too (their compilation is not).
"""

import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.harness import Options, Report, interleave, parse_options
from benchmarks.peers import PEERS, plain_gradient
from benchmarks.problems import problem
from nufed.common.config import MethodConfig
from nufed.common.examples import Batch
from nufed.common.meta.estimators import ESTIMATORS
from nufed.common.steps.dense_steps import dense_steps
from nufed.common.task import LossFn

INNER_LR = 0.1
BEST_OF = ("learn2learn", "higher", "torchopt", "parallel-metalearn")
NUS = {"mlp": (1, 2, 3, 5, 10, 20), "cnn": (1, 2, 5, 10), "resnet18": (1, 3)}
QUICK_NUS = {"mlp": (1, 2, 5), "cnn": (1,)}
OURS: dict[str, tuple[str, bool, dict[str, str]]] = {
    "unrolled": ("unrolled", True, {"memory": "fast"}),
    "unrolled low": ("unrolled", True, {"memory": "low"}),
    "exact coupled": ("exact", True, {"hessian_batches": "inner", "memory": "fast"}),
    "exact fresh": ("exact", False, {}),
    "first-order": ("first-order", True, {}),
    "hessian-free": ("hessian-free", True, {}),
    "hf forward": ("hessian-free", True, {"hessian_free_difference": "forward"}),
}
OF_STEPS = {name: OURS[name] for name in ("unrolled", "exact fresh", "first-order")}
COMPILED = {
    f"{name} compiled": (estimator, coupled, {**changes, "compile": "on"})
    for name, (estimator, coupled, changes) in OF_STEPS.items()
}
AUTOGRAD = {f"{name} autograd": variant for name, variant in OF_STEPS.items()}


def variants(network: str, nu: int, *, compiled: bool) -> dict[str, Callable[[], object]]:
    """Return name -> computation of one meta-gradient; each has a model of its own."""
    found: dict[str, Callable[[], object]] = {}
    shared = problem(network)
    batches = {coupled: shared.batches(nu, coupled=coupled) for coupled in (True, False)}
    found["unit"] = plain_gradient(problem(network), batches[True])
    for name, make in PEERS.items():
        found[name] = make(problem(network), batches[True], INNER_LR)
    autograd = AUTOGRAD if dense_steps(shared.loss, INNER_LR) else {}
    for name, (estimator, coupled, changes) in {**OURS, **autograd, **(COMPILED if compiled else {})}.items():
        method = MethodConfig(num_inner_steps=nu, inner_lr=INNER_LR, estimator=estimator, **changes)
        run = ESTIMATORS[estimator].build(_of_no_known_model(shared.loss) if name in autograd else shared.loss, method)
        found[name] = lambda run=run, coupled=coupled: run(shared.params, batches[coupled])  # type: ignore[misc]
    return found


def _of_no_known_model(loss: LossFn) -> LossFn:
    """Return the loss as one whose derivatives only autograd has."""

    def value(params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return loss(params, batch)

    return value


def check_agreement(network: str) -> None:
    """Raise unless all exact computations on coupled batches give one meta-gradient."""
    runs = variants(network, 2, compiled=False)
    reference = torch.cat([tensor.reshape(-1) for tensor in runs["naive"]()])  # type: ignore[attr-defined]
    for name in (*BEST_OF, "unrolled", "unrolled low", "unrolled autograd", "exact coupled"):
        if name not in runs:
            continue
        result = runs[name]()
        tensors = result if isinstance(result, list) else list(result.gradient.values())  # type: ignore[attr-defined]
        difference = (torch.cat([tensor.reshape(-1) for tensor in tensors]) - reference).norm() / reference.norm()
        if difference > 1e-4:
            raise RuntimeError(f"{name} on {network} differs from naive by {float(difference):.1e}")


def measure(report: Report, options: Options, network: str, nus: tuple[int, ...]) -> list[list[object]]:
    """Add the network's table and return its rows of ratios to the fastest peer."""
    compiled = "--compile" in sys.argv and network == "mlp"
    rows: dict[str, list[object]] = {}
    bars: list[list[object]] = []
    for nu in nus:
        small = network == "mlp"
        samples = interleave(
            variants(network, nu, compiled=compiled),
            repeats=options.repeats if small or options.quick else max(3, options.repeats // 2),
            clock=options.clock,
            min_seconds=0.03 if small else 0.0,
        )
        for name in samples.seconds:
            rows.setdefault(name, [name]).append(samples.ratio(name, "unit"))
        rows["unit"][-1] = f"{samples.median('unit') * 1e3:.3g} ms"
        best = samples.fastest(BEST_OF)
        ours = [name for name in samples.seconds if name.startswith(("unrolled", "exact", "first-order"))]
        bars.append([network, nu, best, *(samples.ratio(name, best) for name in ours)])
    report.add(f"{network}: time / unit", ["variant", *(f"ν={nu}" for nu in nus)], list(rows.values()))
    report.add(f"{network}: time / fastest peer", ["network", "ν", "fastest peer", *ours], bars)
    return bars


def main() -> None:
    compiled = "--compile" in sys.argv
    given = [argument for argument in sys.argv[1:] if argument != "--compile"]
    options = parse_options(__doc__ or "", arguments=given)
    report = Report.start("meta_gradient", options)
    for network, nus in (QUICK_NUS if options.quick else NUS).items():
        check_agreement(network)
        measure(report, options, network, nus)
    report.write(
        inner_lr=INNER_LR,
        batch_size=40,
        compiled=compiled,
        note="learn2learn is its algorithm (clone, adapt with create_graph) without its copies of the module tree",
    )


if __name__ == "__main__":
    main()
