"""Looking a name up in a registry, which is a dict literal somewhere in the code."""

from collections.abc import Mapping
from typing import TypeVar

from nufed.common.errors import ConfigError, nearest_match_hint

Entry = TypeVar("Entry")


def find_registered(registry: Mapping[str, Entry], name: str, *, what: str, option: str) -> Entry:
    """Return the entry of a name.

    Args:
        registry: name -> entry.
        name: as it was given.
        what: what the registry holds, for the message, e.g. `estimator`.
        option: where the name was given, e.g. `method.estimator`.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in registry:
        raise ConfigError(f"Unknown {what} {name!r} ({option}).{nearest_match_hint(name, registry)}")
    return registry[name]
