"""Peak memory of one meta-gradient: resident set above what it was before the call, each in a fresh process.

python -m benchmarks.peak_memory [--quick]
"""

import json
import sys
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.harness import Report, in_fresh_process, parse_options, peak_memory
from benchmarks.meta_gradient import BEST_OF, INNER_LR, OURS
from benchmarks.peers import PEERS
from benchmarks.problems import BATCH_SIZE, Problem, problem
from nufed.common.config import MethodConfig
from nufed.common.meta.estimators import ESTIMATORS
from nufed.common.params import num_bytes

MIB = 2**20
CASES = {"cnn": (1, 5, 20), "resnet18": (1, 5, 20), "mlp-wide": (5, 20)}
QUICK_CASES = {"cnn": (1, 5)}
PROMPT = {
    "MALLOC_MMAP_THRESHOLD_": "65536"
}  # freed tensors go back at once: what is live counts, not the allocator's luck
MEASURED = ("naive", *BEST_OF, *OURS)


def measured_here(network: str, nu: int, name: str) -> float:
    """Return MiB that one meta-gradient takes beyond parameters and batches, in this process.

    A step on two examples goes before, so that what PyTorch loads at first use is not counted.
    """
    given = problem(network)
    _computation(given, name, 1, size=2)()
    return peak_memory(_computation(given, name, nu, size=BATCH_SIZE)) / MIB


def _computation(given: Problem, name: str, nu: int, *, size: int) -> Callable[[], object]:
    if name in PEERS:
        return PEERS[name](given, given.batches(nu, size=size), INNER_LR)
    estimator, coupled, changes = OURS[name]
    method = MethodConfig(num_inner_steps=nu, inner_lr=INNER_LR, estimator=estimator, **changes)
    batches = given.batches(nu, coupled=coupled, size=size)
    return partial(ESTIMATORS[estimator].build(given.loss, method), given.params, batches)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        torch.set_num_threads(1)
        network, nu, name = sys.argv[2:]
        print(json.dumps(measured_here(network, int(nu), name)))
        return
    options = parse_options(__doc__ or "")
    report = Report.start("peak_memory", options)
    for network, nus in (QUICK_CASES if options.quick else CASES).items():
        found = {
            (name, nu): in_fresh_process("benchmarks.peak_memory", "--one", network, str(nu), name, environment=PROMPT)
            for name in MEASURED
            for nu in nus
        }
        rows: list[list[object]] = [[name, *(found[name, nu] for nu in nus)] for name in MEASURED]
        for name in ("exact fresh", "unrolled low", "unrolled"):
            best = [min(found[peer, nu] for peer in BEST_OF) for nu in nus]
            rows.append([f"{name} / best peer", *(found[name, nu] / low for nu, low in zip(nus, best, strict=True))])
        vector = num_bytes(problem(network).params) / MIB
        report.add(
            f"{network}: MiB (one parameter vector: {vector:.1f})", ["variant", *(f"ν={nu}" for nu in nus)], rows
        )
        first, last = nus[-2], nus[-1]
        growth: list[list[object]] = []
        for name in MEASURED:
            beyond = found[name, last] - found[name, first] - (last - first) * vector
            growth.append([name, found[name, last] - found[name, first], beyond / found[name, first]])
        title = f"{network}: growth from ν={first} to {last}, and its part beyond {last - first} parameter vectors"
        report.add(title, ["variant", "MiB", "beyond / MiB at the smaller ν"], growth)
    report.write(inner_lr=INNER_LR, batch_size=40)


if __name__ == "__main__":
    main()
