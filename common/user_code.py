"""Functions of the user's own, named `module:function` in the configuration.

What a name means where a module in the working folder has the name of another one:

1. Python's own modules, NuFed and what NuFed itself imports (`NEEDED`) are never replaced; naming one is an error that
   says so.
2. Then the working folder, as for any script of the user's, before whatever else is installed.
"""

import functools
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from nufed.common.errors import ConfigError, NufedError

NEEDED = frozenset(
    {
        *(
            "PIL",
            "click",
            "cloudpickle",
            "cryptography",
            "dp_accounting",
            "flwr",
            "google",
            "grpc",
            "grpc_health",
            "matplotlib",
            "mlflow",
            "numpy",
            "nufed",
            "onnx",
            "optuna",
            "peft",
        ),
        *("onnxscript", "pandas", "prometheus_client", "pyarrow", "pydantic", "pydantic_core", "pydantic_settings"),
        *("ray", "rich", "safetensors", "scipy", "sklearn", "starlette", "torch", "torchvision", "transformers"),
        *("typer", "typing_extensions", "uvicorn", "wandb"),
    }
)
"""What NuFed imports, some of it late, by its top-level names."""


def load_function(reference: str, option: str, failure: type[NufedError] = ConfigError) -> Callable[..., Any]:
    """Return the function that `module:function` names; modules in the working directory are found too.

    Args:
        reference: for example `my_package.federation:make`.
        option: key of the configuration, for the message.
        failure: what the returned function raises, with the place, where the user's code raises anything.

    Raises:
        ConfigError: there is no such module or function, or the module cannot be imported.
    """
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{option} expects module:function, but got {reference!r}.")
    here = Path.cwd()
    module = _import(module_name, option, here)
    _check_origin(module, module_name, option, here)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = ", ".join(sorted(name for name, value in vars(module).items() if callable(value) and name[0] != "_"))
        raise ConfigError(
            f"{option} names {function_name!r}, which {module_name} does not define as a function. "
            f"It has: {known or 'none'}."
        )
    return guarded(function, f"{option}={reference!r}", failure, here)


def guarded(function: Callable[..., Any], what: str, failure: type[NufedError], here: Path) -> Callable[..., Any]:
    """Return the function, its own errors told in one sentence with the place; ours pass unchanged.

    While it runs it can import what lies in the folder `here`.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            with _importing_from(here):
                return function(*args)
        except NufedError:
            raise
        except (Exception, SystemExit) as error:  # the user's function may raise anything, and end the program
            raise failure(_blame(error, what)) from error

    return call


def _import(module_name: str, option: str, here: Path) -> ModuleType:
    _forget_other_folders(here)
    try:
        with _importing_from(here):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(_blame(error, f"{option} names the module {module_name!r}, which")) from error
        _check_origin(sys.modules.get(module_name.partition(".")[0]), module_name, option, here)
        raise ConfigError(
            f"{option} names the module {module_name!r}, which is neither installed nor a file under {here}. "
            "Check the name, or start in the folder that holds it."
        ) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything, and end the program
        raise ConfigError(_blame(error, f"{option} names the module {module_name!r}, which")) from error


def _check_origin(module: ModuleType | None, module_name: str, option: str, here: Path) -> None:
    """Refuse a module from elsewhere where the working folder has one of its name, which cannot both be loaded."""
    top = module_name.partition(".")[0]
    own = PathFinder.find_spec(top, [str(here)])
    if module is None or own is None or own.loader is None:
        return
    loaded = sys.modules.get(top, module)
    origin = getattr(loaded, "__file__", None)
    if origin is not None and own.origin is not None and Path(origin).resolve() == Path(own.origin).resolve():
        return
    raise ConfigError(
        f"{option} names the module {top!r}, which the working folder has ({Path(own.origin or '').name}), but Python "
        f"or a package in use has another one of that name ({origin or 'built in'}). Rename yours."
    )


class _WorkingFolderFirst(MetaPathFinder):
    """Finds top-level modules of one folder before installed ones; a finder, because `sys.path` has no exceptions."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002 - the interface's signature
    ) -> ModuleSpec | None:
        """Return the folder's module, unless its name is taken; folders without __init__.py may be anything."""
        if path is not None or "." in name or name in NEEDED or name in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(name, [self._folder])
        if spec is None or spec.loader is None:
            return None
        spec.loader_state = _OfFolder(self._folder)
        return spec


@dataclass(frozen=True)
class _OfFolder:
    """Marks a module of a working folder."""

    folder: str


def _forget_other_folders(here: Path) -> None:
    """Let go of modules that were found in another working folder, which may have the names of this one's."""
    marks = {name: getattr(module, "__spec__", None) for name, module in sys.modules.items()}
    states = {name: getattr(spec, "loader_state", None) for name, spec in marks.items()}
    strange = {name for name, state in states.items() if isinstance(state, _OfFolder) and state.folder != str(here)}
    for name in list(sys.modules):
        if name.partition(".")[0] in strange:
            del sys.modules[name]


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let imports inside the block find the folder's modules, and namespace packages there after all others."""
    finder, last = _WorkingFolderFirst(folder), str(folder)
    sys.meta_path.insert(0, finder)
    sys.path.append(last)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        with suppress(ValueError):  # the user's code may have taken it out
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(last)]


def _blame(error: Exception | SystemExit, what: str) -> str:
    """Return what the user's code raised and in which of its lines."""
    if isinstance(error, SyntaxError):
        place, reason = f"{Path(error.filename or '?').name}, line {error.lineno}", error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1])
        place, reason = f"{Path(frame.filename).name}, line {frame.lineno}", str(error)
    return f"{what} raised {type(error).__name__}: {reason} ({place}). Correct it there; --debug shows the traceback."
