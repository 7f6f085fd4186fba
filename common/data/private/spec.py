"""What a client types to name its own data: `KIND:ARGUMENT?option=value&option=value`.

The options of each kind are in `KINDS`; their meanings in the modules that read the kind and in
docs/your-own-data.md. A value with `&` in it writes it as `%26`; a path with `?` in it cannot be named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from nufed.common.data.private.task import split_names
from nufed.common.errors import ConfigError, nearest_match_hint

_TABLE = (
    *("label", "labels", "categories", "ignore", "missing", "indicator", "scale", "na", "bad"),
    *("group", "split", "test"),
)
KINDS: dict[str, tuple[str, ...]] = {
    "csv": (*_TABLE, "sep", "encoding", "decimal", "thousands", "skip", "header"),
    "parquet": _TABLE,
    "images": ("size", "gray", "group", "test"),
    "npz": ("user", "test"),
    "python": ("test",),
}
"""The options that each kind of data takes."""

USERS = {kind: (*options, "user") for kind, options in KINDS.items() if kind in ("csv", "parquet", "images")}
"""The options of data of several clients, in which `user` says whose each example is."""

_EXAMPLES = {
    "csv": "csv:patients.csv?label=disease",
    "parquet": "parquet:patients.parquet?label=disease",
    "images": "images:scans",
    "npz": "npz:mine.npz",
    "python": "python:my_module:my_function",
}


@dataclass(frozen=True)
class PrivateSpec:
    """A client's data, as named on its command line.

    Attributes:
        text: as typed.
        kind: a key of `KINDS`.
        argument: a path, or `module:function`.
        options: by name.
    """

    text: str
    kind: str
    argument: str
    options: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Return the argument as a path."""
        return Path(self.argument).expanduser()

    def names(self, option: str) -> tuple[str, ...]:
        """Return the comma-separated names of an option; empty without it.

        Raises:
            ConfigError: one is empty or stands twice.
        """
        return split_names(self.options.get(option, ""), f"--data: {option}")

    def choice(self, option: str, allowed: tuple[str, ...], default: str) -> str:
        """Return an option's value, one of `allowed`.

        Raises:
            ConfigError: it is another.
        """
        value = self.options.get(option, default)
        if value not in allowed:
            raise ConfigError(f"--data: {option}={value!r} is unknown.{nearest_match_hint(value, allowed)}")
        return value


def parse_spec(text: str, kinds: Mapping[str, tuple[str, ...]] = KINDS) -> PrivateSpec:
    """Return the parts of a spec.

    Args:
        text: as typed.
        kinds: options that each kind takes: `KINDS`, beside which a client may name a slice, `USERS`, or some of them.

    Raises:
        ConfigError: it has no such form, or an option is unknown or stands twice.
    """
    kind, colon, rest = text.partition(":")
    if kind not in kinds or not colon:
        slices = ["digits#3/20"] if kinds is KINDS else []
        known = ", ".join([*(_EXAMPLES[name] for name in kinds), *slices])
        raise ConfigError(f"Expected --data of a known kind, got {text!r}. Type it like one of: {known}.")
    argument, _, query = rest.partition("?")
    if not argument:
        raise ConfigError(f"--data {text!r} lacks what follows {kind}:. Type it like {_EXAMPLES[kind]}.")
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise ConfigError(f"--data: expected option=value after ?, got {part!r}. Correct it.")
        if name not in kinds[kind]:
            hint = nearest_match_hint(name, kinds[kind])
            raise ConfigError(f"--data: {kind} has no option {name!r}.{hint}")
        if name in options:
            raise ConfigError(f"--data: the option {name!r} stands twice. Remove one.")
        options[name] = unquote(value)
    return PrivateSpec(text, kind, argument, options)
