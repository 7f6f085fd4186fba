"""Functions of the user's own, named `module:function` in the configuration."""

import functools
import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nufed.common.errors import ConfigError, NufedError


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
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(_blame(error, f"{option} names the module {module_name!r}, which")) from error
        raise ConfigError(
            f"{option} names the module {module_name!r}, which is neither installed nor a file under {here}. "
            "Check the name, or start in the folder that holds it."
        ) from error
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(_blame(error, f"{option} names the module {module_name!r}, which")) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = ", ".join(sorted(name for name, value in vars(module).items() if callable(value) and name[0] != "_"))
        raise ConfigError(
            f"{option} names {function_name!r}, which {module_name} does not define as a function. "
            f"It has: {known or 'none'}."
        )
    return _guarded(function, f"{option}={reference!r}", failure)


def _guarded(function: Callable[..., Any], what: str, failure: type[NufedError]) -> Callable[..., Any]:
    """Return the function, its own errors told in one sentence with the place; ours pass unchanged."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except NufedError:
            raise
        except Exception as error:  # the user's function may raise anything
            raise failure(_blame(error, what)) from error

    return call


def _blame(error: Exception, what: str) -> str:
    """Return what the user's code raised and in which of its lines."""
    if isinstance(error, SyntaxError):
        place, reason = f"{Path(error.filename or '?').name}, line {error.lineno}", error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1])
        place, reason = f"{Path(frame.filename).name}, line {frame.lineno}", str(error)
    return f"{what} raised {type(error).__name__}: {reason} ({place}). Correct it there; --debug shows the traceback."
