"""Functions of the user's own, named `module:function` in the configuration."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import ConfigError


def load_function(reference: str, option: str) -> Callable[..., Any]:
    """Return the function that `module:function` names; modules in the working directory are found too.

    Args:
        reference: for example `my_package.federation:make`.
        option: key of the configuration, for the message.

    Raises:
        ConfigError: there is no such module or function. What the module itself raises is passed on.
    """
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{option} expects module:function, but got {reference!r}.")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{option} names the module {module_name!r}, which is neither installed nor a file under {here}. "
            "Check the name, or start in the folder that holds it."
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = ", ".join(sorted(name for name in vars(module) if not name.startswith("_")))
        raise ConfigError(f"{option} names {function_name!r}, which {module_name} does not define. It has: {known}.")
    return function  # type: ignore[no-any-return]
