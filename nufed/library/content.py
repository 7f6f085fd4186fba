"""Names of functions and objects given in Python, from what they are: equal for equal ones, in any process.

Of a function of the user's own: its compiled code, defaults, attributes, closure, and the global names that it uses, of
which functions and classes of the user's own are looked into likewise. Of arrays and modules: their values. Of all else
its pickled bytes.

Not seen: what code of installed packages does (its name alone counts), attributes that are looked up on a module of
one's own (`mine.loss`, where `from mine import loss` is seen), files, and what is found by a name made at run time.
Another version of Python compiles otherwise, and so gives other names.
"""

import dataclasses
import dis
import functools
import hashlib
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from nufed.common.errors import ConfigError
from nufed.common.user_code import NEEDED

_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type(Ellipsis),
    range,
    np.generic,
    torch.dtype,
    torch.device,
)
_INSTALLED = ("site-packages", "dist-packages")
_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, np.ufunc)


def content_name(value: Any, what: str) -> str:
    """Return 16 hexadecimal digits that follow from what a value is.

    Args:
        value: a function, or what holds some.
        what: names it in messages.

    Raises:
        ConfigError: it uses something of which nothing can be known.
    """
    return _Content(what).of(value)[:16]


class _Content:
    """Computes hashes of values; holds those that it is in the midst of, which may refer to themselves."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._within: list[int] = []

    def of(self, value: Any) -> str:
        """Return a value's hash, hexadecimal."""
        if id(value) in self._within:
            return f"itself {len(self._within) - self._within.index(id(value))}"
        if isinstance(value, _PLAIN):
            return _hash(type(value).__name__, repr(value))
        self._within.append(id(value))
        try:
            return _hash(type(value).__name__, *self._parts(value))
        finally:
            self._within.pop()

    def _parts(self, value: Any) -> Iterable[str]:
        for kinds, parts in self._ways().items():
            if isinstance(value, kinds):
                return parts(value)
        if dataclasses.is_dataclass(value):
            fields = [getattr(value, each.name) for each in dataclasses.fields(value)]
            return [self.of(type(value)), *map(self.of, fields)]
        if _is_of_user(type(value)) and all(base is object or _is_of_user(base) for base in type(value).__mro__):
            return [self.of(type(value)), *self._mapping(getattr(value, "__dict__", {})), *self._slots(value)]
        if callable(wrapped := getattr(value, "__wrapped__", None)):  # as functools.cache makes
            return [self.of(wrapped)]
        return [self._pickled(value)]

    def _ways(self) -> dict[Any, Callable[[Any], Iterable[str]]]:
        return {
            (tuple, list): lambda values: map(self.of, values),
            (set, frozenset): lambda values: sorted(map(self.of, values)),
            dict: self._mapping,
            torch.Tensor: lambda tensor: self._array(tensor.detach().cpu().numpy()),
            np.ndarray: self._array,
            types.FunctionType: self._function,
            types.MethodType: lambda method: [self.of(method.__func__), self.of(method.__self__)],
            functools.partial: lambda bound: [self.of(each) for each in (bound.func, bound.args, bound.keywords)],
            types.CodeType: self._code,
            types.ModuleType: lambda module: [module.__name__],
            _BUILTIN: self._builtin,
            (staticmethod, classmethod): lambda method: [self.of(method.__func__)],
            property: lambda found: [self.of(each) for each in (found.fget, found.fset)],
            type: self._class,
            nn.Module: self._module,
        }

    def _mapping(self, values: Mapping[Any, Any]) -> list[str]:
        return [self.of(part) for pair in values.items() for part in pair]

    def _array(self, array: np.ndarray) -> list[str]:
        if array.dtype.hasobject:
            return [str(array.shape), *map(self.of, array.ravel().tolist())]
        return [array.dtype.str, str(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]

    def _function(self, function: types.FunctionType) -> list[str]:
        if not _is_of_user(function):
            return [f"{function.__module__}.{function.__qualname__}"]
        cells = [_content_of(cell) for cell in function.__closure__ or ()]
        used = {name: function.__globals__[name] for name in _globals_of(function.__code__) & {*function.__globals__}}
        rest = (function.__defaults__, function.__kwdefaults__, function.__dict__, cells, dict(sorted(used.items())))
        return [self.of(function.__code__), *map(self.of, rest)]

    def _code(self, code: types.CodeType) -> list[str]:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        rest = (code.co_code, code.co_exceptiontable, code.co_names, code.co_freevars, code.co_cellvars, code.co_consts)
        return [self.of(each) for each in (counts, *rest)]

    def _builtin(self, function: Any) -> list[str]:
        name, owner = getattr(function, "__qualname__", function.__name__), getattr(function, "__self__", None)
        return [name] if owner is None or isinstance(owner, types.ModuleType) else [name, self.of(owner)]

    def _class(self, owner: type) -> list[str]:
        name = f"{owner.__module__}.{owner.__qualname__}" if not _is_of_user(owner) else owner.__name__
        if not _is_of_user(owner):
            return [name]
        said = {key: each for key, each in vars(owner).items() if not key.startswith("__") or callable(each)}
        slots = (types.MemberDescriptorType, types.GetSetDescriptorType)
        parts = {key: each for key, each in said.items() if not isinstance(each, slots) and key[:4] != "_abc"}
        return [name, *map(self.of, owner.__bases__), *self._mapping(parts)]

    def _module(self, module: nn.Module) -> list[str]:
        plain = {name: each for name, each in vars(module).items() if name[0] != "_"}
        tensors = dict(module.state_dict(keep_vars=True))
        return [self.of(type(module)), *self._mapping(plain), *self._mapping(tensors), *self._mapping(module._modules)]

    def _slots(self, value: Any) -> list[str]:
        names = [name for owner in type(value).__mro__ for name in getattr(owner, "__slots__", ())]
        return [self.of((name, getattr(value, name, None))) for name in names if name != "__dict__"]

    def _pickled(self, value: Any) -> str:
        try:
            return hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()
        except Exception as error:  # whatever the object's own code raises
            raise ConfigError(
                f"{self._what} uses an object of type {type(value).__name__}, of which nothing can be known that a run "
                "could be resumed by. Make it inside the function, or put the function into a module and give its "
                "name, module:function."
            ) from error


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(f"{len(part)} {part}" for part in parts).encode()).hexdigest()


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _globals_of(code: types.CodeType) -> set[str]:
    """Return the global names that code uses, in the functions inside it too."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals_of(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _is_of_user(found: Any) -> bool:
    """Return whether a function or a class is the user's own, and not of Python, NuFed or an installed package."""
    name = getattr(found, "__module__", None) or "builtins"
    top = name.partition(".")[0]
    if top == "__main__":
        return True
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return top not in NEEDED and top not in sys.stdlib_module_names and not any(part in file for part in _INSTALLED)
