"""Which layer of a model is its head: the one whose output is the model's output, in the order of execution.

One forward pass is watched. From the model's output back along the graph of its computation, the layers that are met
first are candidates; what lies between (a softmax, a choice of one token's logits, a change of shape) has no
parameters. Two candidates, or one that also computes inside the body, are for the user to decide (`method.head`).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nufed.common.config import MethodConfig
from nufed.common.errors import ModelError
from nufed.common.meta.parts import head_names, uses_head
from nufed.common.rng import GLOBAL_STATE, seeded_generators
from nufed.common.task import call_model
from nufed.common.trees import Tree, first_leaf

_SEED = 0


def with_head(model: nn.Module, method: MethodConfig, inputs: "Tree | None") -> MethodConfig:
    """Return the method with the names of the head's parameters in `head`, where it treats the head otherwise.

    Args:
        model: on the device of the inputs; unchanged when this returns.
        method: names the head, or leaves it to be found.
        inputs: of a few examples; None where there are none, and a head that is not named stays so.

    Raises:
        ModelError: as `find_head` and `resolve_head`.
    """
    if not uses_head(method):
        return method
    if method.head:
        return method.model_copy(update={"head": resolve_head(model, method.head)})
    return method if inputs is None else method.model_copy(update={"head": find_head(model, inputs)})


def find_head(model: nn.Module, inputs: Tree) -> str:
    """Return the names of the head's parameters, separated by commas.

    Args:
        model: on the device of the inputs; unchanged when this returns.
        inputs: of a few examples.

    Raises:
        ModelError: several layers make the output together, or the last one is part of the body too, with their names.
    """
    with GLOBAL_STATE, _all_differentiated(model):
        layers = dict(_layers(model))
        calls, made = Counter[str](), dict[Any, str]()
        hooks = [module.register_forward_hook(_noting(name, calls, made)) for name, module in layers.items()]
        try:
            with torch.enable_grad(), seeded_generators(_SEED, (first_leaf(inputs).device,)):
                output = call_model(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        found = _first_met(output, made, _owners(model))
    if not found:
        last = ", ".join(map(repr, list(calls)[-3:])) or "none of its layers"
        raise ModelError(
            f"expected to find the head of {type(model).__name__}, but its output cannot be followed back to a layer "
            f"({last} ran last); {_say(list(calls)[-1:])}"
        )
    if len(found) > 1:
        raise ModelError(
            f"expected one last layer in {type(model).__name__}, its head, but {_listed(found)} make its output "
            f"together; {_say(found)}"
        )
    if calls[found[0]] > 1:
        raise ModelError(
            f"expected a head that computes the output alone, but {found[0]!r} is called {calls[found[0]]} times in "
            f"{type(model).__name__}, so that it is part of the body too; {_say(found)}"
        )
    named = [name for name, _ in model.named_parameters() if _is_under(name, found[0])]
    if tied := _tied(model, found[0]):
        raise ModelError(
            f"expected a head with parameters of its own, but {found[0]!r} shares {tied!r} with the body of "
            f"{type(model).__name__}; give each its own, or {_say(found)}"
        )
    return ",".join(named)


def resolve_head(model: nn.Module, named: str) -> str:
    """Return the names of the parameters of the modules or parameters that `method.head` names.

    Raises:
        ModelError: a name is none of the model's, or nothing is left for the body.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    own = {id(tensor): name for name, tensor in model.named_parameters()}
    for part in (part.strip() for part in named.split(",")):
        if not head_names(every, part):
            owners = dict.fromkeys(name.rpartition(".")[0] or name for name in every)
            raise ModelError(
                f"expected modules or parameters of {type(model).__name__} in method.head, but it has no {part!r}; it "
                f"has {', '.join(map(repr, list(owners)[-12:]))}"
            )
    return ",".join(dict.fromkeys(own[id(every[name])] for name in head_names(every, named)))


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that compute with parameters of their own, each with what is in it as one."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(_is_under(name, outer) for outer in inside):
            continue
        own = any(tensor is not None for tensor in module._parameters.values())
        below = any(tensor is not None for child in module.children() for tensor in child.parameters())
        if _is_whole(module) or (own and not below):
            inside.append(name)
            yield name, module


def _is_whole(module: nn.Module) -> bool:
    """Return whether a module with others inside is one layer: an adapted one, one with computed weights, attention."""
    adapted = isinstance(getattr(module, "base_layer", None), nn.Module)  # by Hugging Face's peft
    computed = isinstance(getattr(module, "parametrizations", None), nn.Module)
    return adapted or computed or isinstance(module, nn.MultiheadAttention)


def _owners(model: nn.Module) -> dict[int, str]:
    """Return parameter's id -> the layer, or the parameter of a module with others inside, that it belongs to."""
    layers = [name for name, _ in _layers(model)]
    return {
        id(tensor): next((layer for layer in layers if _is_under(name, layer)), name)
        for name, tensor in model.named_parameters()
    }


def _noting(name: str, calls: Counter[str], made: dict[Any, str]) -> Any:
    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        calls[name] += 1
        for tensor in _tensors(output):
            if tensor.grad_fn is not None:
                made[tensor.grad_fn] = name

    return note


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for each in output.values():
            yield from _tensors(each)
    elif isinstance(output, tuple | list):
        for each in output:
            yield from _tensors(each)


def _first_met(output: Tensor, made: dict[Any, str], owners: dict[int, str]) -> list[str]:
    """Return the layers that are met first on the ways back from the output."""
    found: dict[str, None] = {}
    waiting: list[Any] = [output.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in made:
            found[made[node]] = None
        elif (leaf := getattr(node, "variable", None)) is not None:
            if id(leaf) in owners:
                found[owners[id(leaf)]] = None
        else:
            waiting += [before for before, _ in node.next_functions]
    return sorted(found, key=[*owners.values(), *made.values()].index)


def _tied(model: nn.Module, layer: str) -> str:
    """Return the first parameter of a layer that is elsewhere in the model too; empty if none is."""
    everywhere = [*model.named_parameters(remove_duplicate=False)]
    inside = {id(tensor): name for name, tensor in everywhere if _is_under(name, layer)}
    outside = (inside.get(id(tensor), "") for name, tensor in everywhere if not _is_under(name, layer))
    return next(filter(None, outside), "")


@contextmanager
def _all_differentiated(model: nn.Module) -> Iterator[None]:
    """Let the graph of the computation hold frozen layers too."""
    frozen = [tensor for tensor in model.parameters() if not tensor.requires_grad and tensor.is_floating_point()]
    try:
        for tensor in frozen:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)


def _is_under(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")


def _listed(names: list[str]) -> str:
    return f"{', '.join(map(repr, names[:-1]))} and {names[-1]!r}"


def _say(names: list[str]) -> str:
    said = ",".join(names) or "fc"
    return f'say which modules are the head, as method.head="{said}"'
