"""Which module of a model it is that does what no module should: each is called alone, as the model called it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nufed.common import trees
from nufed.common.models.agreement import gradients_near, near
from nufed.common.models.nearby import direction_at, moved
from nufed.common.models.recording import Recording, record
from nufed.common.models.second_derivatives import ScalarFn, double_backward, is_differentiated_twice
from nufed.common.params import Params, leaves, model_params, trained_parameters
from nufed.common.rng import seeded_generators
from nufed.common.trees import Tree

Forward = Callable[[], object]


@dataclass(frozen=True)
class Call:
    """A module of a model and the arguments of its first call in a forward pass, tensors copied."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def described(model: nn.Module, path: str) -> str:
    """Return a module's name and class, for a message."""
    module = model.get_submodule(path)
    return f"{path!r} ({type(module).__name__})" if path else f"the model itself ({type(model).__name__})"


def find_culprit(model: nn.Module, forward: Forward, is_good: Callable[[Call], bool]) -> str:
    """Return the description of the innermost module that is not good on its own; of the model itself if all are.

    Args:
        model: which of its modules are called is watched during `forward`.
        forward: one forward pass of the model.
        is_good: whether a module, called alone with these arguments, does not do it; what it raises counts as yes.
    """
    for path, call in reversed(_calls(model, forward).items()):  # children come after their parents
        try:
            if path and not is_good(call):
                return described(model, path)
        except Exception:  # noqa: BLE001, S112 - called alone, the module of a user may raise anything
            continue
    return described(model, "")


def find_writer(model: nn.Module, forward: Forward, inputs: Tree) -> str:
    """Return the description of the innermost module during whose call `inputs` changed."""
    found: list[str] = []
    before: dict[str, list[Tensor]] = {}

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: before.update({path: [leaf.clone() for leaf in trees.leaves(inputs)]})

    def leave(path: str) -> Callable[..., None]:
        return lambda *_: None if all(map(torch.equal, before[path], trees.leaves(inputs))) else found.append(path)

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.enter_context(_Removed(module.register_forward_pre_hook(enter(path))))
            hooks.enter_context(_Removed(module.register_forward_hook(leave(path))))
        _tried(forward)
    return described(model, found[0] if found else "")


def _calls(model: nn.Module, forward: Forward) -> dict[str, Call]:
    """Return the first call of each module, in the order of the modules."""
    calls: dict[str, Call] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if path not in calls:
                calls[path] = Call(module, tuple(map(_copied, args)), {k: _copied(v) for k, v in kwargs.items()})

        return hook

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.enter_context(_Removed(module.register_forward_pre_hook(note(path), with_kwargs=True)))
        _tried(forward)
    return {path: calls[path] for path, _ in model.named_modules() if path in calls}


def _tried(forward: Forward) -> None:
    with suppress(Exception):  # what was called until then is of interest
        forward()


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def is_repeatable(call: Call) -> bool:
    """Return whether a second call gives the same."""
    function, point = _scalar(call)
    return near(function(point).detach(), function(point).detach())


def takes_parameters(call: Call) -> bool:
    """Return whether the gradient is that at other parameters while these stand in the place of the module's own."""
    function, point = _scalar(call)
    at = leaves(point)
    given = torch.autograd.grad(function(at), list(at.values()), allow_unused=True)
    with parameters_at(call.module, {name: point[name] for name in trained_parameters(call.module)}):
        own = {**at, **trained_parameters(call.module)}
        found = torch.autograd.grad(function(own), list(own.values()), allow_unused=True)
    return gradients_near(dict(zip(at, given, strict=True)), dict(zip(at, found, strict=True)))


def can_be_differentiated_twice(call: Call) -> bool:
    """Return whether double backward raises nothing."""
    function, point = _scalar(call)
    function(point)
    try:
        double_backward(function, point, direction_at(point))
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return True


def is_differentiated_rightly(call: Call) -> bool:
    """Return whether double backward gives the derivatives of the gradient."""
    function, point = _scalar(call)
    double = {name: tensor.double() for name, tensor in point.items()}
    _, recording = record(lambda: function(double))
    return second_derivatives_are_right(function, double, recording)


def second_derivatives_are_right(function: ScalarFn, point: Params, recording: Recording) -> bool:
    """Return whether second derivatives in float64 are right; yes where differences cannot tell.

    Args:
        function: from named tensors to a scalar.
        point: in float64.
        recording: of the function there.
    """
    coarse = bool(recording.precisions - {torch.float64})
    if coarse and recording.kinks:
        return True
    return is_differentiated_twice(function, point, coarse=coarse)


@contextmanager
def parameters_at(model: nn.Module, point: Mapping[str, Tensor]) -> Iterator[None]:
    """Move a model's own parameters to a point inside the block."""
    own = {name: parameter for name, parameter in model.named_parameters() if name in point}
    kept = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            parameter.data = point[name].detach().clone()
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = kept[name]


def _scalar(call: Call) -> tuple[ScalarFn, Params]:
    """Return a scalar function of a module's parameters and floating-point arguments, and where to evaluate it."""
    flat, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
    point = moved(model_params(call.module))
    names = {number: f"argument {number}" for number, each in enumerate(flat) if _is_floating(each)}
    point |= moved({name: flat[number] for number, name in names.items()})  # off the kinks at exact zeros

    def function(at: Mapping[str, Tensor]) -> Tensor:
        given = [at[names[number]].clone() if number in names else each for number, each in enumerate(flat)]
        args, kwargs = pytree.tree_unflatten(given, spec)
        params = {name: tensor for name, tensor in at.items() if name not in names.values()}
        own = trained_parameters(call.module)
        with seeded_generators(0):
            if all(own[name] is tensor for name, tensor in params.items()):
                outputs = call.module(*args, **kwargs)
            else:
                constants = _frozen_like(call.module, next(iter(params.values())))
                outputs = torch.func.functional_call(call.module, {**constants, **params}, args, kwargs)
        floats = [each for each in pytree.tree_leaves(outputs) if _is_floating(each)]
        return torch.stack([(each.sin() + each.square()).sum() for each in floats]).sum()

    return function, point


def _frozen_like(module: nn.Module, like: Tensor) -> Params:
    """Return the frozen parameters in a tensor's precision."""
    return {
        name: tensor.detach().to(like.dtype)
        for name, tensor in module.named_parameters()
        if not tensor.requires_grad and tensor.is_floating_point()
    }


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _Removed:
    """Takes a hook away at the end of a block; holds its handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
