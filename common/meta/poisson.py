"""Batches for record-level differential privacy: each unit is in each batch by a coin of its own, thrown in secret.

A unit is an example, or all examples of a group where the data has groups. The batches of a meta step are independent
draws; that of a step's Hessian is the inner one where the estimator couples them.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nufed.common.examples import Examples
from nufed.common.meta.draw import BatchPlan, Sources
from nufed.common.meta.example_terms import SampledBatch
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.privacy.noise import RandomSource


def rate(size: int, num_examples: int) -> float:
    """Return q, the probability that a unit is in a batch of `size` examples on average; 0 takes all."""
    return 1.0 if size == 0 or size >= num_examples else size / num_examples


@dataclass(frozen=True)
class _Source:
    """Rows that batches are drawn from, those of one unit behind one another, and each row's unit; None: its own."""

    rows: np.ndarray
    units: np.ndarray | None

    @property
    def num_units(self) -> int:
        if self.units is None:
            return len(self.rows)
        return int(self.units[-1]) + 1 if len(self.units) else 0


class PoissonBatches:
    """Draws the batches of meta steps; holds the support split with its units in order."""

    def __init__(self, support: Examples, sources: Sources, plan: BatchPlan, source: RandomSource) -> None:
        """Prepare to draw.

        Args:
            support: the client's support split.
            sources: its rows for inner and outer batches.
            plan: how many batches of which size.
            source: decides who is in each batch.
        """
        self._support, self._plan, self._random = replace(support, groups=None), plan, source
        groups = None if support.groups is None else support.groups.cpu().numpy()
        self._inner, self._outer = _by_unit(sources.inner, groups), _by_unit(sources.outer, groups)

    def draw(self) -> MetaBatches[SampledBatch]:
        """Return the batches of one meta step, each drawn by itself."""
        plan = self._plan
        outer = self._sampled(self._outer, plan.outer_size)
        inner = tuple(self._sampled(self._inner, plan.inner_size) for _ in range(plan.num_inner))
        hessian = tuple(self._sampled(self._inner, plan.hessian_size) for _ in range(plan.num_hessian))
        return MetaBatches(inner, outer, hessian or inner)

    def _sampled(self, source: _Source, size: int) -> SampledBatch:
        q = rate(size, len(source.rows))
        rows, units = source.rows, source.units
        if q < 1:
            chosen = self._random.bernoulli(q, source.num_units)
            mask = chosen if units is None else chosen[units]
            rows, units = rows[mask], None if units is None else units[mask]
        numbers = None if units is None else _tensor(np.unique(units, return_inverse=True)[1], self._support.device)
        examples = self._support.take(_tensor(rows, self._support.device)).as_batch()
        return SampledBatch(examples, numbers, q * len(source.rows))


def _by_unit(rows: np.ndarray, groups: np.ndarray | None) -> _Source:
    if groups is None:
        return _Source(rows, None)
    codes = np.unique(groups[rows], return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    return _Source(rows[order], codes[order])


def _tensor(numbers: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(device)
