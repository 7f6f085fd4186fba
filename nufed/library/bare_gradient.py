"""`nufed.meta_gradient`: the method's gradient alone, for any training loop in PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError, ModelError
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.meta_gradient import Estimate, MetaBatches
from nufed.common.params import leaves, trained_parameters
from nufed.library.arguments import as_collection, as_name, as_step_size, kind_of, listed


def meta_gradient(
    loss_fn: Callable[[Mapping[str, Tensor], Any], Tensor],
    params: Mapping[str, Tensor] | nn.Module,
    batches: MetaBatches | Sequence[Any],
    *,
    inner_lr: float,
    estimator: str = "exact",
    **options: Any,
) -> Estimate:
    """Return the gradient of the loss after ν gradient steps with respect to where they start.

    Of F(w) = f(w_ν) with w_0 = w and w_{j+1} = w_j - α ∇f(w_j), it is

        ∇F(w) = (I - α ∇²f(w_0)) ⋯ (I - α ∇²f(w_{ν-1})) ∇f(w_ν)

    (Jamali, Saber and Bae, arXiv 2504.21327, equation (3)).

    Args:
        loss_fn: `loss_fn(params, batch)`, a scalar tensor that can be differentiated twice; `params` are tensors by
            name, e.g. for `torch.func.functional_call`. It must use them all.
        params: w, floating-point tensors by name, or a module, whose parameters that require
            gradients are taken; not changed.
        batches: ν + 1 batches, of any type: one for each inner step, then the outer one; the Hessians are those of the
            inner batches. Or `MetaBatches`, with Hessian batches of their own.
        inner_lr: α, step size of the inner steps.
        estimator: `exact`, `unrolled`, `first-order` or `hessian-free`; `nufed estimators` says what they are.
        **options: of the estimator, by their field names: `memory`, `hessian_free_delta`,
            `hessian_free_displacement`, `hessian_free_difference`.

    Returns:
        `gradient` (tensors by name, shaped as `params`, detached), `outer_loss` f(w_ν), `outer_norm` ‖∇f(w_ν)‖ and
        `costs` in gradients and Hessian-vector products.

    Raises:
        ConfigError: the estimator is unknown, an option is out of range, or batches are missing.
        ModelError: the loss is no scalar that depends on every parameter. What `loss_fn` itself raises comes unchanged.

    Examples:
        >>> import nufed, torch
        >>> def loss_fn(params, batch):
        ...     return 0.5 * (params["w"] - batch).square().sum()
        >>> estimate = nufed.meta_gradient(loss_fn, {"w": torch.tensor([2.0])}, [0.0, 0.0, 0.0], inner_lr=0.5)
        >>> estimate.gradient["w"]  # w (1 - α)^(2 ν) with ν = 2
        tensor([0.1250])
    """
    found = find_estimator(as_name(estimator, "estimator"))
    point = _point(params)
    given = _batches(batches, uses_hessian_batches=found.uses_hessian_batches)
    coupled = given.hessian is given.inner
    method = _method(inner_lr, estimator, coupled=coupled, options=options)
    _check_loss(loss_fn, point, given.outer)
    return found.build(loss_fn, method)(point, given)


_OPTIONS = ("memory", "hessian_free_delta", "hessian_free_displacement", "hessian_free_difference")


def _method(inner_lr: float, estimator: str, *, coupled: bool, options: Mapping[str, Any]) -> MethodConfig:
    from nufed.library.options import run_config

    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ConfigError(f"Unknown option {unknown[0]!r} of an estimator. Known: {', '.join(_OPTIONS)}.")
    step_size = as_step_size(inner_lr, "inner_lr", above_zero=False)
    batches = "inner" if coupled else "fresh"
    values = {"inner_lr": step_size, "estimator": estimator, "hessian_batches": batches, **options}
    return run_config(None, None, values, {}).method


def _point(params: Mapping[str, Tensor] | nn.Module) -> dict[str, Tensor]:
    if not isinstance(params, nn.Module | Mapping):
        raise ModelError(f"expected params to be a module or tensors by name, but got {kind_of(params)}; give a dict")
    tensors = dict(trained_parameters(params)) if isinstance(params, nn.Module) else dict(params)
    if not tensors:
        raise ModelError("expected at least one parameter, but params is empty; give tensors by name, or a module")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ModelError(f"expected floating-point tensors, but parameter {name!r} is {kind}; convert it")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _batches(batches: MetaBatches | Sequence[Any], *, uses_hessian_batches: bool) -> MetaBatches:
    if isinstance(batches, MetaBatches):
        if uses_hessian_batches and len(batches.hessian) != len(batches.inner):
            raise ConfigError(
                f"Expected a Hessian batch for each of {len(batches.inner)} inner batches, but got "
                f"{len(batches.hessian)}. Give as many."
            )
        return batches
    given = as_collection(batches, "batches")
    if not given:
        raise ConfigError("Expected ν + 1 batches, those of the inner steps and then the outer one, but got none.")
    inner = tuple(given[:-1])
    return MetaBatches(inner, given[-1], inner)


def _check_loss(loss_fn: Callable[..., Tensor], point: Mapping[str, Tensor], batch: Any) -> None:
    """Refuse a loss that the estimators could not differentiate, by one forward and backward pass."""
    tried = leaves(point)
    if not callable(loss_fn):
        raise ModelError(f"expected loss_fn to be a function of (params, batch), but got {kind_of(loss_fn)}; give one")
    value = cast("Any", loss_fn(tried, batch))  # what it raises is its author's, with the traceback
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        came = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(
            f"expected loss_fn to return a scalar tensor that depends on its first argument, but got {came}"
            f"{' without a gradient' if isinstance(value, Tensor) and not value.requires_grad else ''}; reduce it with "
            ".mean(), and compute it from the params that it is given"
        )
    gradients = torch.autograd.grad(value, list(tried.values()), allow_unused=True)
    if unused := [name for name, gradient in zip(tried, gradients, strict=True) if gradient is None]:
        raise ModelError(
            f"expected a loss that uses every parameter, but it does not depend on {listed(unused)}; leave "
            "that out of params"
        )
