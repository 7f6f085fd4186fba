"""A model's head, its last layer or what `method.head` names, and its body, all the rest.

Which layer is the last is found by the order of execution (nufed.common.models.heads), and then stands in
`method.head`; of a bare loss without a model, it is the last layer by the order of the parameters.

Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020 (ANIL): fine-tuning the head alone is
nearly as good as fine-tuning everything. Collins, Hassani, Mokhtari and Shakkottai, "Exploiting Shared Representations
for Personalized Federated Learning", ICML 2021 (FedRep): clients share the body and fit heads of their own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nufed.common.config import MethodConfig
from nufed.common.errors import ModelError
from nufed.common.examples import Batch
from nufed.common.meta.adapt import adapt
from nufed.common.params import Params, add_scaled, trained_parameters
from nufed.common.steps.differentiate import gradient, hessian_vector_product, value_and_gradient
from nufed.common.steps.steps import PullBack, Steps
from nufed.common.task import LossFn


def head_names(names: Iterable[str], head: str = "") -> list[str]:
    """Return the names of the head's parameters.

    Args:
        names: of the parameters.
        head: modules or parameters, separated by commas; empty for the module that owns the last name.

    Examples:
        >>> head_names(["1.weight", "1.bias", "3.weight", "3.bias"])
        ['3.weight', '3.bias']
        >>> head_names(["head.weight", "body.0.weight", "body.1.weight"], "head,body.1")
        ['head.weight', 'body.1.weight']
    """
    listed = list(names)
    if head:
        owners = tuple(owner.strip() for owner in head.split(","))
        return [name for name in listed if any(name == owner or name.startswith(f"{owner}.") for owner in owners)]
    owner = listed[-1].rpartition(".")[0]
    return [name for name in listed if name.rpartition(".")[0] == owner]


def uses_head(method: MethodConfig) -> bool:
    """Return whether a method treats the head otherwise than the body."""
    return method.adapted_part == "head" or method.trained_part == "body" or method.client_state in ("head", "body")


def check_head(model: nn.Module, method: MethodConfig) -> None:
    """Refuse a model whose head is frozen where the method treats it otherwise than the body.

    Raises:
        ModelError: naming the head and what to do.
    """
    if not uses_head(method):
        return
    option = "adapted-part=head" if method.adapted_part == "head" else "trained-part=body"
    if method.adapted_part == method.trained_part == "all":
        option = f"client-state={method.client_state}"
    every = (name for name, _ in model.named_parameters(remove_duplicate=False))
    head, trained = head_names(every, method.head), trained_parameters(model)
    if not any(name in trained for name in head):
        raise ModelError(
            f"expected a trained head for method.{option}, but the model's last layer, {head[0]!r}, is frozen; name it "
            f"in model.trainable, or name another in method.head"
        )
    shares_head = method.trained_part == "all" and method.client_state == "none"
    if not shares_head and len(head_names(trained, method.head)) == len(trained):
        raise ModelError(_NO_BODY.format(option))


_NO_BODY = (
    "expected a model of several layers for method.{}, but its only layer is its head, or all others are frozen; "
    "choose a method without a head (nufed methods), or another model.name"
)


def without_head(direction: Mapping[str, Tensor], named: str = "") -> Params:
    """Return the direction with zeros for the head, which `named` names (`head_names`).

    Raises:
        ModelError: there is nothing but a head.
    """
    head = set(head_names(direction, named))
    if len(head) == len(direction):
        raise ModelError(_NO_BODY.format("trained-part=body"))
    return {name: torch.zeros_like(tensor) if name in head else tensor for name, tensor in direction.items()}


def without_body(direction: Mapping[str, Tensor], named: str = "") -> Params:
    """Return P v: the direction with zeros for the body, which is all that `named` does not name."""
    head = set(head_names(direction, named))
    return {name: tensor if name in head else torch.zeros_like(tensor) for name, tensor in direction.items()}


def adapt_head(
    loss: LossFn,
    params: Mapping[str, Tensor],
    batches: Iterable[Batch],
    inner_lr: float | Sequence[float],
    named: str = "",
) -> Iterator[Params]:
    """Yield w_0 = `params`, then w_1, w_2, …, as `adapt` does, the body staying as it is."""
    head = {name: params[name] for name in head_names(params, named)}
    for adapted in adapt(_loss_of_head(loss, params), head, batches, inner_lr):
        yield {**params, **adapted}


def head_steps(loss: LossFn, inner_lr: float, *, named: str = "") -> Steps:
    """Return the inner step w - α P ∇f(w), where P keeps the head alone.

    Its Jacobian is I - α P H, transposed I - α H P: the derivative reaches the body through the mixed block of H.
    """

    def descend(params: Mapping[str, Tensor], batch: Batch) -> Params:
        head = {name: params[name] for name in head_names(params, named)}
        moved = add_scaled(head, gradient(_loss_of_head(loss, params), head, batch), -inner_lr)
        return {**params, **moved}

    def pull_back(params: Mapping[str, Tensor], batch: Batch, direction: Params) -> Params:
        product = hessian_vector_product(loss, params, without_body(direction, named), batch)
        return add_scaled(direction, product, -inner_lr)

    def linearize(params: Mapping[str, Tensor], batch: Batch) -> tuple[Params, PullBack]:
        return descend(params, batch), lambda direction: pull_back(params, batch, direction)

    return Steps(inner_lr, lambda params, batch: value_and_gradient(loss, params, batch), descend, linearize, pull_back)


def _loss_of_head(loss: LossFn, params: Mapping[str, Tensor]) -> LossFn:
    return lambda head, batch: loss({**params, **head}, batch)
