"""Which examples each batch of a meta step holds: independent draws from one seeded stream."""

from dataclasses import dataclass

import numpy as np
import torch

from nufed.common import trees
from nufed.common.config import MethodConfig
from nufed.common.errors import DataError
from nufed.common.examples import Batch, Examples
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.rng import NumpyGenerator, derive_seed, numpy_generator


@dataclass(frozen=True)
class BatchPlan:
    """How many batches a meta step draws, and how large they are.

    Attributes:
        num_inner: ν.
        num_hessian: ν for an estimator with Hessian batches of its own, else 0 (they are the inner batches).
        inner_size: D; 0 takes all examples.
        outer_size: D'; 0 takes all examples.
        hessian_size: D''; 0 takes all examples.
    """

    num_inner: int
    num_hessian: int
    inner_size: int
    outer_size: int
    hessian_size: int


def batch_plan(method: MethodConfig, *, uses_hessian_batches: bool) -> BatchPlan:
    """Return the plan that the method's options and its estimator ask for."""
    fresh = uses_hessian_batches and method.hessian_batches == "fresh"
    sizes = (method.outer_batch_size, method.hessian_batch_size)
    outer_size, hessian_size = (method.batch_size if size < 0 else size for size in sizes)
    num_hessian = method.num_inner_steps if fresh else 0
    return BatchPlan(method.num_inner_steps, num_hessian, method.batch_size, outer_size, hessian_size)


@dataclass(frozen=True)
class Sources:
    """Row numbers of the support split that inner (and Hessian) and outer batches are drawn from."""

    inner: np.ndarray
    outer: np.ndarray


def sources_of(support: Examples, holdout_fraction: float, *, seed: int, client_id: str) -> Sources:
    """Return the rows of a support split for inner and outer batches; examples of one group are in one of both.

    Raises:
        DataError: there are not two examples, or groups, to divide.
    """
    if support.groups is None or holdout_fraction == 0:
        return batch_sources(len(support), holdout_fraction, seed=seed, client_id=client_id)
    names, codes = np.unique(support.groups.cpu().numpy(), return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"The support examples of client {client_id!r} all belong to one group, but method.outer-holdout-fraction="
            f"{holdout_fraction} needs at least 2. Set it to 0, or give the client more data."
        )
    of_groups = batch_sources(len(names), holdout_fraction, seed=seed, client_id=client_id)
    return Sources(*(np.flatnonzero(np.isin(codes, chosen)) for chosen in (of_groups.inner, of_groups.outer)))


def batch_sources(num_examples: int, holdout_fraction: float, *, seed: int, client_id: str) -> Sources:
    """Return the rows for inner and outer batches: all for both, or a seeded part for outer batches alone.

    Raises:
        DataError: there are not two examples to divide.
    """
    rows = np.arange(num_examples)
    if holdout_fraction == 0:
        return Sources(rows, rows)
    if num_examples < 2:
        raise DataError(
            f"Client {client_id!r} has {num_examples} support examples, but method.outer-holdout-fraction="
            f"{holdout_fraction} needs at least 2. Set it to 0, or give the client more data."
        )
    num_outer = min(max(1, round(holdout_fraction * num_examples)), num_examples - 1)
    shuffled = numpy_generator(seed, "holdout", client_id).permutation(rows)
    return Sources(np.sort(shuffled[num_outer:]), np.sort(shuffled[:num_outer]))


def draw_indices(plan: BatchPlan, sources: Sources, step_seed: int) -> list[np.ndarray]:
    """Return row numbers for O, I_0 … I_{ν-1}, H_0 … in this order, each batch drawn on its own.

    The outer batch comes first, so that it is the same whatever ν and the estimator. A batch holds distinct examples
    unless it is larger than its source: then it is drawn with replacement.
    """
    generator = numpy_generator(step_seed, "batches")
    drawn = [_draw(generator, sources.outer, plan.outer_size)]
    drawn += [_draw(generator, sources.inner, plan.inner_size) for _ in range(plan.num_inner)]
    drawn += [_draw(generator, sources.inner, plan.hessian_size) for _ in range(plan.num_hessian)]
    return drawn


def draws_with_replacement(plan: BatchPlan, sources: Sources) -> bool:
    """Return whether some batch is larger than what it is drawn from."""
    inner_sizes = [plan.inner_size] * (plan.num_inner > 0) + [plan.hessian_size] * (plan.num_hessian > 0)
    return plan.outer_size > len(sources.outer) or any(size > len(sources.inner) for size in inner_sizes)


def take_batches(support: Examples, indices: list[np.ndarray], num_inner: int, mask_seed: int | None) -> MetaBatches:
    """Return the batches at `indices` (ordered as `draw_indices` does), read in one gather.

    Args:
        support: the client's support split.
        indices: row numbers of each batch.
        num_inner: ν.
        mask_seed: seed that the dropout masks of each batch derive from; None without dropout.
    """
    rows = torch.from_numpy(np.concatenate(indices)).to(support.device)
    taken = support.take(rows)
    sizes = [len(part) for part in indices]
    weights = [None] * len(sizes) if taken.weights is None else torch.split(taken.weights, sizes)
    parts = zip(trees.split(taken.inputs, sizes), trees.split(taken.targets, sizes), weights, strict=True)
    batches = [
        Batch(inputs, targets, None if mask_seed is None else derive_seed(mask_seed, "mask", number), own)
        for number, (inputs, targets, own) in enumerate(parts)
    ]
    inner = tuple(batches[1 : 1 + num_inner])
    return MetaBatches(inner, batches[0], tuple(batches[1 + num_inner :]) or inner)


def _draw(generator: NumpyGenerator, rows: np.ndarray, size: int) -> np.ndarray:
    if size == 0:
        return rows
    return rows[generator.choice(len(rows), size, replace=size > len(rows), shuffle=False)]
