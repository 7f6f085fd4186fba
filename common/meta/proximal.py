"""Losses held to an anchor, f(x) + λ/2 ‖x - w‖², and the Moreau envelope that their minima make.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020
(FedProx, equation 2): the term in local training. Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated
Learning Through Personalization", ICML 2021 (Algorithm 1): the term in a personal model of its own. T. Dinh, Tran and
Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020 (pFedMe).
"""

from collections import deque
from collections.abc import Mapping, Sequence

from torch import Tensor

from nufed.common.examples import Batch
from nufed.common.meta.adapt import adapt
from nufed.common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from nufed.common.params import Params, add_scaled, norm
from nufed.common.steps.differentiate import value_and_gradient
from nufed.common.task import LossFn


def proximal_loss(loss: LossFn, anchor: Mapping[str, Tensor], strength: float) -> LossFn:
    """Return f(x) + λ/2 ‖x - w‖², the sum over the parameters that are given (and the mean over examples in f).

    Args:
        loss: f.
        anchor: w; not differentiated.
        strength: λ.
    """

    def held(params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        distances = [(tensor - anchor[name]).square().sum() for name, tensor in params.items()]
        return loss(params, batch) + 0.5 * strength * sum(distances[1:], distances[0])

    return held


def proximal_pull(params: Mapping[str, Tensor], anchor: Mapping[str, Tensor], strength: float) -> Params:
    """Return μ (x - w), the gradient of μ/2 ‖x - w‖²."""
    return {name: strength * tensor for name, tensor in add_scaled(params, anchor, -1.0).items()}


def moreau_gradient(
    loss: LossFn, *, inner_lr: float | Sequence[float], num_steps: int, strength: float
) -> MetaGradient:
    """Return λ (w - ŵ), the gradient of min_x f(x; O) + λ/2 ‖x - w‖², with ŵ from ν steps of size α that start at w.

    `batches.inner` is not read. At the minimum, ∇f(ŵ) is λ (w - ŵ) itself, so that `Estimate.growth` tells how nearly
    it was reached: 1.
    """

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches) -> Estimate:
        return moreau_step(
            loss, params, params, batches.outer, inner_lr=inner_lr, num_steps=num_steps, strength=strength
        )[0]

    return meta_gradient


def moreau_step(  # noqa: PLR0913 - all but four by name
    loss: LossFn,
    params: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    batch: Batch,
    *,
    inner_lr: float | Sequence[float],
    num_steps: int,
    strength: float,
) -> tuple[Estimate, Params]:
    """Return the estimate of `moreau_gradient` and ŵ, with the steps towards ŵ begun at a point of the caller's.

    One local round of Algorithm 1 of pFedMe (its K is ν, its R is τ); its authors' code begins where the round before
    has ended, which the paper leaves open.
    """
    held = proximal_loss(loss, params, strength)
    point = deque(adapt(held, start, [batch] * num_steps, inner_lr), maxlen=1).pop()
    outer_loss, outer_gradient = value_and_gradient(loss, point, batch)
    gradient = proximal_pull(params, point, strength)
    return Estimate(gradient, outer_loss, norm(outer_gradient), Costs(num_steps + 1)), point
