"""The inner step with record-level differential privacy: every gradient and product is a clipped sum with noise.

An estimator on these steps sees data through them alone: w, w_1, …, w_ν and v are then functions of what was noised
before, and a meta step is a composition of Gaussian mechanisms (docs/theory.md, section 10).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from nufed.common.meta.example_terms import SampledBatch, gradient_sum, product_sum
from nufed.common.params import Params, add_scaled
from nufed.common.privacy.noise import RandomSource, noised_sum
from nufed.common.steps.steps import PullBack, Steps
from nufed.common.task import LossFn


@dataclass(frozen=True)
class Protection:
    """How much noise protects an example, or a group of them.

    Attributes:
        clip: C, of gradients.
        product_clip: of Hessian-vector products.
        noise: z, standard deviation of the noise in clipping lengths; 0 adds none and protects nobody.
        source: of the noise, and of who is in each batch.
    """

    clip: float
    product_clip: float
    noise: float
    source: RandomSource


def private_steps(loss: LossFn, inner_lr: float, protection: Protection, *, mapped: bool = True) -> Steps[SampledBatch]:
    """Return the steps whose gradients and products are noised sums of clipped terms, over the batch's expected size.

    Each call of one draws fresh noise. Losses are of the examples drawn and are not private.

    Args:
        loss: the client's loss.
        inner_lr: α.
        protection: clipping lengths and noise.
        mapped: whether examples are computed together (`nufed.common.meta.example_terms`).
    """

    def value_and_gradient(params: Mapping[str, Tensor], batch: SampledBatch) -> tuple[Tensor, Params]:
        found = gradient_sum(loss, params, batch, protection.clip, mapped=mapped)
        return found.loss, noised_mean(found.total, params, batch.expected_size, protection.clip, protection)

    def product(params: Mapping[str, Tensor], batch: SampledBatch, direction: Params) -> Params:
        found = product_sum(loss, params, direction, batch, protection.product_clip, mapped=mapped)
        return noised_mean(found.total, params, batch.expected_size, protection.product_clip, protection)

    def descend(params: Mapping[str, Tensor], batch: SampledBatch) -> Params:
        return add_scaled(params, value_and_gradient(params, batch)[1], -inner_lr)

    def pull_back(params: Mapping[str, Tensor], batch: SampledBatch, direction: Params) -> Params:
        return add_scaled(direction, product(params, batch, direction), -inner_lr)

    def linearize(params: Mapping[str, Tensor], batch: SampledBatch) -> tuple[Params, PullBack]:
        return descend(params, batch), lambda direction: pull_back(params, batch, direction)

    return Steps(inner_lr, value_and_gradient, descend, linearize, pull_back)


def noised_mean(
    total: Params, like: Mapping[str, Tensor], expected_size: float, clip: float, protection: Protection
) -> Params:
    """Return (total + N(0, (z C)²)) / expected_size, in the types of `like`.

    Args:
        total: a sum of terms of at most C each, float64.
        like: the parameters.
        expected_size: what the sum is divided by, whatever was drawn.
        clip: C.
        protection: z and the source of noise.
    """
    noisy = noised_sum(total, clip, protection.noise, protection.source) if protection.noise else total
    return {name: (tensor / expected_size).to(like[name].dtype) for name, tensor in noisy.items()}
