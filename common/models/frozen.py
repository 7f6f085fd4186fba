"""A model's frozen part: its parameters that are not trained, and the buffers that belong to its state.

Nothing of it is differentiated, sent, averaged, or written to a run's folder. Each side makes its own, by the function
that builds the model, from the run's seed or from a file, and the two are compared by a hash: trained parameters mean
nothing on top of another frozen part.
"""

import hashlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from nufed.common.config.lists import read_names
from nufed.common.durable_file import read_foreign_tensors
from nufed.common.errors import LISTED, ConfigError, ModelError
from nufed.common.params import trained_parameters

_HASH_BYTES = 16
_SHOWN = 12
"""Characters of a hash in a message."""


def freeze_all_but(model: nn.Module, patterns: str) -> None:
    """Let a model's parameters of some names be trained, and no others.

    Args:
        model: changed in place.
        patterns: comma-separated names, `*`, `?` and `[…]` as in file names; `*` passes over dots too.

    Raises:
        ConfigError: a pattern fits no parameter.
    """
    names, chosen = [name for name, _ in model.named_parameters()], set[str]()
    for pattern in filter(None, read_names(patterns)):
        if not (found := [name for name in names if fnmatchcase(name, pattern)]):
            shown = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
            raise ConfigError(
                f"model.trainable={patterns!r} is refused: no parameter of {type(model).__name__} fits {pattern!r}. It "
                f"has: {shown}."
            )
        chosen.update(found)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (name in chosen):
            parameter.requires_grad_(name in chosen)


def in_training_mode(model: nn.Module) -> nn.Module:
    """Return the model itself in training mode, but for frozen layers with running statistics, which stay constant."""
    model.train()
    for module in model.modules():
        if _keeps_statistics(module) and _is_frozen(module):
            module.eval()
    return model


def changing_statistics(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of the layers that keep running statistics and are not frozen."""
    for path, module in model.named_modules():
        if _keeps_statistics(module) and not _is_frozen(module):
            yield path, module


def _keeps_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the frozen parameters, and the buffers that are part of the model's state, by name.

    Buffers that are not (`persistent=False`) are left out: they are computed anew by whoever builds the model.
    """
    trained = trained_parameters(model)
    frozen = {name: tensor.detach() for name, tensor in model.named_parameters() if name not in trained}
    state = model.state_dict().keys()
    return {**frozen, **{name: tensor for name, tensor in model.named_buffers() if name in state}}


def frozen_hash(model: nn.Module) -> str:
    """Return the BLAKE2b of the frozen part, in hexadecimal; empty for a model all of whose parameters are trained.

    It is of names, types, shapes and bytes, so that it is the same wherever the same file was read.
    """
    if len(trained_parameters(model)) == len(list(model.parameters())):
        return ""
    return hash_of(frozen_tensors(model))


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the BLAKE2b of tensors by name, in hexadecimal, whatever their order."""
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_frozen(here: str, there: str, whose: str) -> None:
    """Refuse a frozen part that is another one than that which the trained parameters belong to.

    Args:
        here: hash of the model that was built here.
        there: the other hash.
        whose: what the other hash is of, e.g. `the server's model`.

    Raises:
        ModelError: with the beginnings of both hashes, and what to do.
    """
    if here == there:
        return
    error = ModelError(
        f"expected the frozen part of {whose} (BLAKE2b {there[:_SHOWN] or 'none'}), but the one built here is another "
        f"({here[:_SHOWN] or 'none'}); give the same options, and read it from one file everywhere (--frozen PATH or "
        "NUFED_FROZEN): what is drawn from a seed may differ between versions of torch and processors"
    )
    error.sendable = True  # hashes alone
    raise error


def load_frozen(model: nn.Module, path: Path) -> None:
    """Read a model's frozen part from a file; what else the file holds is passed over.

    Args:
        model: changed in place.
        path: safetensors that hold the frozen parameters by name, and buffers where these are to be read too, e.g. all
            of a model's `state_dict()`; or the folder of a run whose model has them.

    Raises:
        ModelError: nothing is frozen, a tensor is missing, or has another shape.
        RunError: the file cannot be read.
    """
    wanted = frozen_tensors(model)
    if len(trained_parameters(model)) == len(list(model.parameters())):
        raise ModelError(
            f"expected a model with a frozen part for --frozen {path}, but every parameter is trained; set "
            "model.trainable, or leave --frozen out"
        )
    found = read_foreign_tensors(path)
    _check_like(path, model, found)
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name in found:
                tensor.copy_(found[name])


def _check_like(path: Path, model: nn.Module, found: Mapping[str, Tensor]) -> None:
    wanted, parameters = frozen_tensors(model), dict(model.named_parameters())
    if missing := [name for name in wanted if name in parameters and name not in found]:
        raise ModelError(
            f"expected the frozen part of the model in {path}, but {missing[0]!r} is missing (and {len(missing) - 1} "
            "more); give a file that holds it, e.g. one of all of the model's state_dict()"
        )
    for name, tensor in found.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            raise ModelError(
                f"expected {name!r} of shape {list(wanted[name].shape)} in {path}, but got {list(tensor.shape)}; give "
                "the file of a model like this one"
            )
