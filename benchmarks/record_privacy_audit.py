"""Attack meta steps under record-level privacy, and hold what is learned against the ε that is reported.

    python -m benchmarks.record_privacy_audit [--runs 1000] [--out FOLDER]

A record is there or not. Its gradients and products are as long as clipping lets them be, all in one direction, and the
other records turn each noised result into a part of the next, so that one number of the update holds all of a meta
step's queries with equal weights: the likelihood ratio's. An attacker who knows all but the record guesses by
a threshold. What it achieves bounds ε from below (Clopper and Pearson, 95 %): that bound stays below the reported
ε, and passes it where half the noise is added, so that an account that forgets queries or a step that adds too little
noise would be found.
"""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.examples import Batch, Examples
from nufed.common.meta.local_update import Stream, private_update
from nufed.common.meta.private_steps import Protection
from nufed.common.privacy.noise import RandomSource
from nufed.common.privacy.record import round_steps, spent

OTHERS = 40
"""Records beside the one that is looked for."""

INNER_LR = 0.5
_STRONG, _CURVED = 1e6, 1e3  # of the record: its terms are clipped, and it is the first of them that points

DELTA = 0.05
"""Of the account: what an attack of a thousand runs can show is hardly less than what it says of so large a δ."""


@dataclass(frozen=True)
class Attack:
    """A way to compute meta-gradients, and how it is attacked.

    Attributes:
        estimator: its name.
        hessian_batches: as the option.
        rate: q of inner and Hessian batches; outer ones hold all.
    """

    estimator: str
    hessian_batches: str = "fresh"
    rate: float = 1.0

    @property
    def method(self) -> MethodConfig:
        """Return one meta step with one inner step."""
        size = 0 if self.rate == 1 else round(self.rate * (OTHERS + 1))
        return MethodConfig(
            num_inner_steps=1,
            num_local_steps=1,
            inner_lr=INNER_LR,
            local_lr=1.0,
            batch_size=size,
            outer_batch_size=0,
            estimator=self.estimator,
            hessian_batches=self.hessian_batches,
        )

    def reported(self, noise: float) -> float:
        """Return the ε of one round."""
        return spent([round_steps(self.method, OTHERS + 1).with_noise(noise)], DELTA)

    def statistics(self, there: bool, noise: float, runs: int, key: str = "") -> np.ndarray:
        """Return what the attacker reads in each of so many updates, larger where the record is there.

        Args:
            there: whether it is.
            noise: z.
            runs: how many updates.
            key: of noise that can be repeated; empty: the operating system's.
        """
        inputs = torch.zeros(OTHERS + 1, dtype=torch.float64)
        inputs[-1] = 1.0 if there else 2.0
        examples = Examples(inputs, torch.zeros(OTHERS + 1, dtype=torch.int64))
        start = {name: torch.zeros(1, dtype=torch.float64) for name in ("a", "c")}
        found = []
        for run in range(runs):
            guard = Protection(1.0, 2 / INNER_LR, noise, RandomSource(key, run))
            update = private_update(_loss, start, examples, self.method, Stream(0, "", 1), protection=guard)
            found.append(-float(update.params["a"]) * (OTHERS + 1))
        return np.array(found)


def _loss(point: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the loss of examples that say who they are: 1 is the record, 2 is nobody, whose terms are zeros.

    Of the others, the curvature along a gives (w_1)_a back as a part of the outer gradient, and the slope along c makes
    the direction in which the Hessian is asked for known.
    """
    a, c = point["a"].sum(), point["c"].sum()
    record, others = (batch.inputs == number for number in (1.0, 0.0))
    curvature = -(OTHERS + 1) / (OTHERS * INNER_LR)
    of_record = _STRONG * a - _CURVED * a * c
    of_others = curvature * a.square() / 2 + c / 2
    return (record * of_record + others * of_others).mean()


def lower_bound(with_record: np.ndarray, without: np.ndarray, share: float = 0.2) -> float:
    """Return the ε below which no mechanism would let both sides be told apart so well, with 95 % confidence.

    The threshold is found on a part of the runs that is not counted.

    Args:
        with_record: [runs] what was read where the record is there.
        without: [runs] where it is not.
        share: false alarms that the threshold aims at.
    """
    apart = len(without) // 5
    threshold = np.quantile(without[:apart], 1 - share)
    hits, alarms = int((with_record[apart:] > threshold).sum()), int((without[apart:] > threshold).sum())
    number = len(without) - apart
    least_hits = float(beta.ppf(0.025, hits, number - hits + 1)) if hits else 0.0
    most_alarms = float(beta.ppf(0.975, alarms + 1, number - alarms)) if alarms < number else 1.0
    return math.log(max(least_hits - DELTA, 1e-300) / most_alarms)


ATTACKS = (
    Attack("first-order"),
    Attack("exact"),
    Attack("exact", "inner"),
    Attack("unrolled"),
    Attack("unrolled", rate=0.5),
)


def audit(attack: Attack, noise: float, runs: int) -> dict[str, float]:
    """Return the reported ε, and its lower bounds by the attack with all of the noise and with half of it."""
    bounds = [
        lower_bound(*(attack.statistics(there, share * noise, runs) for there in (True, False))) for share in (1, 0.5)
    ]
    return {"noise": noise, "reported": attack.reported(noise), "found": bounds[0], "with half the noise": bounds[1]}


def main() -> None:
    """Print a row for each attack."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=1000, help="updates with the record, and as many without")
    parser.add_argument("--noise", type=float, default=3.0, help="z")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    rows = []
    for attack in ATTACKS:
        row = audit(attack, arguments.noise, arguments.runs)
        rows.append({"estimator": attack.estimator, "batches": attack.hessian_batches, "q": attack.rate, **row})
        figures = [f"{name} {value:.3g}" if isinstance(value, float) else value for name, value in rows[-1].items()]
        print("  ".join(figures), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "record_privacy_audit.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
