"""Finished runs made of given numbers, for tests of what is concluded from them."""

from pathlib import Path

import numpy as np

from nufed.common.config import RunConfig
from nufed.deploy.experiments.comparison import compare
from nufed.deploy.experiments.finished import ClientTable, FinishedRun, Progress

NUM_STEPS = 6
LABELS = {"fedavg": "FedAvg + fine-tuning", "per-fedavg": "ν = 1", "meta-2": "ν = 2", "fo-2": "FO(2)"}


def made_run(method, seed, curve, *, progress=(), loss=False, measure="accuracy", clients=4, config=None, setting=""):
    """Return a run whose clients lie evenly around `curve` (mean over clients for each s) and whose A(s*) progresses.

    Args:
        method: name.
        seed: of the run.
        curve: [S+1] mean over clients.
        progress: A(s*) at rounds 0, 10, 20, …
        loss: judge by the loss alone, as in regression.
        measure: the primary metric otherwise.
        clients: how many in each group.
        config: options beside.
        setting: name of the setting.
    """
    offsets = np.linspace(-0.02, 0.02, clients)[:, None]
    values = np.asarray(curve, dtype=float)[None] + offsets
    table = ClientTable(
        tuple(f"client-{index}" for index in range(clients)),
        np.full(clients, 1000),  # of which one is worth less than the noise
        {"loss": values} if loss else {measure: values, "loss": 1 - values},
    )
    rounds = np.arange(len(progress)) * 10
    curves = np.repeat(np.asarray(progress, dtype=float)[:, None], NUM_STEPS + 1, axis=1)
    options = {
        "seed": seed,
        "evaluation.num-adapt-steps": NUM_STEPS,
        "evaluation.primary-step": 2,
        "federation.num-rounds": 10 * max(0, len(progress) - 1),
        **(config or {}),
    }
    return FinishedRun(
        method,
        setting,
        seed,
        RunConfig().updated(options),
        {"status": "complete", "seconds": 1.0, "primary_metric": None if loss else measure},
        {"participating": table, "new": table},
        Progress(rounds, curves, rounds * 5.0, rounds * 100.0),
        Path("nowhere"),
    )


NU = "method.num-inner-steps"
OPTIONS = {
    "fedavg": {NU: 0},
    "per-fedavg": {NU: 1},
    "meta-2": {NU: 2},
    "fo-2": {NU: 2, "method.estimator": "first-order"},
}


def made_comparison(curves, *, noise=0.001, seeds=5, progress=None, **roles):
    """Return a comparison of methods whose mean curves are given; seeds differ by a common shift and a little noise."""
    rng = np.random.default_rng(0)
    shifts = rng.normal(0, 0.05, seeds)
    runs = [
        made_run(
            method,
            seed,
            np.asarray(curve) + shifts[seed] + rng.normal(0, noise, NUM_STEPS + 1),
            progress=(progress or {}).get(method, ()),
            config=OPTIONS[method],
        )
        for method, curve in curves.items()
        for seed in range(seeds)
    ]
    return compare(runs, LABELS, **{"reference": "fedavg", "baseline": "per-fedavg", **roles})
