"""A loss and a metric of one's own: how long patients live, some of whom were still alive when they were last seen.

The model gives the logarithm of a hazard, constant in time; the metric is the share of pairs whose order it gets right.

    python examples/own_task.py
"""

import numpy as np
import torch
from torch import Tensor

import nufed
from nufed.common.examples import TaskInfo
from nufed.common.tasks import OwnTask


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the negative logarithm of the likelihood, [B], of log hazards [B, 1] and (years, died) [B, 2]."""
    log_hazard, (years, died) = outputs[:, 0], targets.T
    return log_hazard.exp() * years - died * log_hazard


def concordance(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of pairs, of which one is known to have died first, whose hazards are in that order."""
    risk, (years, died) = outputs[:, 0], targets.T
    comparable = (years[:, None] < years) & (died[:, None] == 1)
    right = (risk[:, None] > risk) & comparable
    return float(right.sum() / comparable.sum()) if comparable.any() else float("nan")


def survival(_info: TaskInfo) -> OwnTask:
    """Return the task: exponential survival with censoring. Predictions are hazards, in deaths a year."""
    metric = "own_task:concordance"
    return OwnTask(losses, predictions=torch.exp, metrics=(metric,), primary_metric=metric)


def hospital(number: int, num_patients: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Return five findings [N, 5] and (years, died) [N, 2]; what is dangerous differs between hospitals."""
    random = np.random.default_rng(number)
    findings, danger = random.normal(size=(num_patients, 5)), np.array([1, 0.5, -1, 0, 0]) + random.normal(size=5)
    years, seen = random.exponential(np.exp(-findings @ danger)), random.exponential(2.0, num_patients)
    targets = np.stack([np.minimum(years, seen), years <= seen], axis=1)
    return findings.astype(np.float32), targets.astype(np.float32)


def main() -> None:
    """Train over ten hospitals; two are new."""
    hospitals = {f"hospital-{number:02}": hospital(number) for number in range(12)}
    run = nufed.simulate(
        hospitals,
        lambda: torch.nn.Linear(5, 1),
        task="python:own_task:survival",
        new_clients=["hospital-10", "hospital-11"],
        num_inner_steps=3,
        inner_lr=0.05,
        local_lr=0.05,
        num_rounds=15,
    )
    print(run)


if __name__ == "__main__":
    main()
