"""What stays as it is while a model is called: its buffers, its parameters, and generators that its modules keep."""

from collections.abc import Mapping

from torch import Tensor, nn

from nufed.common.errors import ModelError
from nufed.common.models.agreement import same
from nufed.common.models.culprit import described
from nufed.common.params import Params
from nufed.common.rng import state_of


def check_buffers(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Refuse a model whose buffers are others than those before its call.

    Raises:
        ModelError: naming the buffer, its module and what to do.
    """
    for name, buffer in model.named_buffers():
        if name not in before or not same(buffer, before[name]):
            raise ModelError(
                f"expected buffers that stay as they are, but {name!r} of {described(model, name.rpartition('.')[0])} "
                "changes in the forward pass; use a layer without state, such as torch.nn.GroupNorm"
            )


def check_parameters_stay(model: nn.Module, given: Params, before: Params) -> None:
    """Refuse a model that has changed the parameters that it was called with.

    Args:
        model: for the names of its modules.
        given: parameters that it was called with.
        before: the same as they were before the call.

    Raises:
        ModelError: naming the parameter, its module and what to do.
    """
    for name, tensor in given.items():
        if not same(tensor.detach(), before[name]):
            raise _changes(model, name)


def check_no_renorm(model: nn.Module) -> None:
    """Refuse embeddings with `max_norm`, which change their weight in place as soon as a row of it is longer.

    Raises:
        ModelError: naming the first and what to do.
    """
    for path, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise _changes(model, f"{path}.weight" if path else "weight")


def own_generators(model: nn.Module) -> dict[tuple[str, str], str]:
    """Return the states of the random generators that modules keep as attributes, by module and attribute."""
    return {
        (path, name): state
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if (state := state_of(value)) is not None
    }


def check_generators(model: nn.Module, before: Mapping[tuple[str, str], str]) -> None:
    """Refuse a model that draws from generators of its own, whose state no seed of a batch decides.

    Raises:
        ModelError: naming the module and what to do.
    """
    for (path, name), state in own_generators(model).items():
        if before.get((path, name)) != state:
            raise ModelError(
                f"expected random numbers from the global generators of torch, NumPy or Python, which are seeded for "
                f"each batch, but {described(model, path)} draws from the generator {name!r} that it keeps, so that "
                "equal seeds give equal outputs and gradients no longer; draw from a global one"
            )


def _changes(model: nn.Module, name: str) -> ModelError:
    return ModelError(
        f"expected parameters that stay as they are, but {name!r} of {described(model, name.rpartition('.')[0])} "
        "changes in the forward pass; compute with a changed copy (weight = weight / weight.norm()), and leave "
        "max_norm out"
    )
