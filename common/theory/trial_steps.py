"""Step sizes to begin with, from short training on a few clients, not from what bounds F everywhere.

The unit of β is a size that the curvature of F gives along a path of meta steps on the clients' mean (Malitsky and
Mishchenko, "Adaptive Gradient Descent without Descent", ICML 2020, Algorithm 1):
λ_k = min(√(1 + θ) λ_{k-1}, ‖Δw‖ / (2 ‖Δ∇F‖)), θ = λ_{k-1}/λ_{k-2}; that of α is the theory's. Multiples of both make
pairs, and each pair is trained as a run trains, with its batches, τ and number of chosen clients. After 1 and 4 rounds
those stay that have the lowest loss on examples that nobody trained on, after s* fine-tuning steps of α (successive
halving; Jamieson and Talwalkar, AISTATS 2016); the best after 16 is the advice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.config.method import rounded
from nufed.common.errors import ModelError
from nufed.common.examples import Batch, Examples
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.params import Params, add_scaled, norm
from nufed.common.rng import numpy_generator
from nufed.common.steps.steps import autograd_steps
from nufed.common.task import LossFn

_INNER_SIZES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""α that are tried, in units of the one that the theory recommends."""
_SIZES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""β that are tried, in units of the size that the curvature gave."""
_RUNGS = ((1, 8), (4, 3), (16, 1))
"""After how many rounds pairs of α and β are judged, and how many of them stay."""
_FIRST = 1e-3
"""Of the first step, relative to max(1, ‖w‖)/‖∇F‖: short, so that the curvature at the start is what it finds."""
_PATH = 16


@dataclass(frozen=True)
class TrialClient:
    """A client's examples.

    Attributes:
        client_id: stable name, which the draws of its batches follow from.
        support: what it trains on and adapts to.
        judged: what an adapted model is judged by.
    """

    client_id: str
    support: Examples
    judged: Examples


@dataclass(frozen=True)
class Trial:
    """What is trained, and how.

    Attributes:
        loss: mean over the examples of a batch.
        point: where to start.
        clients: who may be chosen, and is judged.
        num_chosen: how many are chosen for a round, if there are as many.
        method: of the run; its α and β are replaced.
        num_adapt_steps: s*, fine-tuning steps before a client is judged.
        seed: of the run.
    """

    loss: LossFn
    point: Mapping[str, Tensor]
    clients: Sequence[TrialClient]
    num_chosen: int
    method: MethodConfig
    num_adapt_steps: int
    seed: int

    def trained(self, params: Mapping[str, Tensor], sizes: tuple[float, float], rounds: range) -> Params:
        """Return the model after further rounds with sizes α and β; not finite where they diverge."""
        here = dict(params)
        method = self.method.model_copy(update={"inner_lr": sizes[0], "local_lr": sizes[1]})
        for number in rounds:
            mean = {name: torch.zeros_like(each) for name, each in here.items()}
            chosen = self._chosen(number)
            for client in chosen:
                stream = Stream(self.seed, client.client_id, number)
                update = local_update(self.loss, here, client.support, method, stream)
                mean = add_scaled(mean, update.params, 1 / len(chosen))
            here = mean
            if not math.isfinite(norm(here)):
                break
        return here

    def _chosen(self, number: int) -> list[TrialClient]:
        order = numpy_generator(self.seed, "theory", "round", number).permutation(len(self.clients))
        return [self.clients[index] for index in sorted(order[: self.num_chosen])]

    def judged(self, params: Mapping[str, Tensor], alpha: float) -> float:
        """Return the clients' mean loss on their judged examples after s* whole-batch steps; inf where it diverges."""
        total, descend = 0.0, autograd_steps(self.loss, alpha).descend
        for client in self.clients:
            adapted, batch = dict(params), client.support.as_batch()
            for _ in range(self.num_adapt_steps):
                adapted = descend(adapted, batch)
            with torch.no_grad():
                total += float(self.loss(adapted, client.judged.as_batch())) / len(self.clients)
        return total if math.isfinite(total) else math.inf


@dataclass(frozen=True)
class TrialSteps:
    """What short training found.

    Attributes:
        inner_lr: α.
        local_lr: β; inf where F does not change along a step.
        before: mean loss on the judged examples after s* steps of α from the start; inf if that diverges.
        after: the same after training.
        num_tried: pairs of α and β.
        num_rounds: that the best of them were trained for.
    """

    inner_lr: float
    local_lr: float
    before: float
    after: float
    num_tried: int
    num_rounds: int


def trial_steps(trial: Trial, inner_lr: float, *, is_given: bool = False) -> TrialSteps:
    """Return the α and β after which these clients have the lowest loss.

    Args:
        trial: what is trained.
        inner_lr: α; multiples of it are tried.
        is_given: whether it is the only one.

    Raises:
        ModelError: with every α the loss is not finite: all of them are too large.
    """
    alphas = [inner_lr] if is_given else [inner_lr * factor for factor in _INNER_SIZES]
    supports = [client.support.as_batch() for client in trial.clients]
    size = curved_path(trial.loss, trial.point, supports, (trial.method.num_inner_steps, alphas[0]))
    if not math.isfinite(size):
        before = trial.judged(trial.point, inner_lr)
        return TrialSteps(inner_lr, math.inf, before, before, 0, 0)
    points = {(rounded(alpha), rounded(size * factor)): dict(trial.point) for alpha in alphas for factor in _SIZES}
    num_tried, done = len(points), 0
    for num_rounds, num_kept in _RUNGS:
        points = {pair: trial.trained(point, pair, range(done, num_rounds)) for pair, point in points.items()}
        found = {pair: trial.judged(point, pair[0]) for pair, point in points.items()}
        points = {pair: points[pair] for pair in sorted(points, key=lambda each: found[each])[:num_kept]}
        done = num_rounds
    (best,) = points
    if not math.isfinite(found[best]):
        raise ModelError(
            f"expected a finite loss after training with inner steps of size {min(alphas):.3g}, but it is not; lower "
            "--inner-lr"
        )
    before = trial.judged(trial.point, best[0])
    return TrialSteps(*best, before, found[best], num_tried, done)


def curved_path(
    loss: LossFn, point: Mapping[str, Tensor], clients: Sequence[Batch], inner_steps: tuple[int, float]
) -> float:
    """Return the median size of the later half of some meta steps on the clients' mean; inf where F does not change.

    Raises:
        ModelError: F or its gradient is not finite on the way: α is too large.
    """
    here = dict(point)
    _, gradient = meta_gradient(loss, here, clients, *inner_steps)
    size = _FIRST * max(1.0, norm(here)) / max(norm(gradient), 1e-30)
    growth, sizes = math.inf, list[float]()
    for _ in range(_PATH):
        there = add_scaled(here, gradient, -size)
        _, following = meta_gradient(loss, there, clients, *inner_steps)
        moved, turned = size * norm(gradient), norm(add_scaled(following, gradient, -1.0))
        if moved == 0 or turned == 0:
            break
        following_size = min(math.sqrt(1 + growth) * size, moved / (2 * turned))
        here, gradient = there, following
        growth, size = following_size / size, following_size
        sizes.append(size)
    later = sorted(sizes[len(sizes) // 2 :])
    return later[len(later) // 2] if later else math.inf


def meta_gradient(
    loss: LossFn, params: Mapping[str, Tensor], clients: Sequence[Batch], num_inner_steps: int, inner_lr: float
) -> tuple[float, Params]:
    """Return F and its gradient: the mean over clients of the loss after ν full-batch steps of size α.

    Raises:
        ModelError: one of them is not finite.
    """
    total, value = {name: torch.zeros_like(each) for name, each in params.items()}, 0.0
    for batch in clients:
        start = {name: each.detach().requires_grad_() for name, each in params.items()}
        adapted: dict[str, Tensor] = dict(start)
        for _ in range(num_inner_steps):
            slopes = torch.autograd.grad(loss(adapted, batch), list(adapted.values()), create_graph=True)
            adapted = {name: w - inner_lr * g for (name, w), g in zip(adapted.items(), slopes, strict=True)}
        final = loss(adapted, batch)
        for name, slope in zip(start, torch.autograd.grad(final, list(start.values())), strict=True):
            total[name] += slope / len(clients)
        value += float(final.detach()) / len(clients)
    if not (math.isfinite(value) and math.isfinite(norm(total))):
        raise ModelError(
            f"expected a finite loss after {num_inner_steps} inner steps of size {inner_lr:.3g}, but it is not; lower "
            "--inner-lr"
        )
    return value, total
