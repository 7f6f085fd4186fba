"""Flat keys to tables and back, and what is said of keys and values that are refused."""

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nufed.common.config.section import Scalar, to_kebab
from nufed.common.errors import ConfigError, nearest_match_hint

# A pattern tells a reader nothing that the option's description does not say in words.
_PATTERN = "string_pattern_mismatch"


def put(nested: dict[str, Any], key: str, value: Any, tables: Collection[str] = (), above: str = "") -> None:
    """Set a dotted key in a nested dict, copying tables so that the caller's are not changed.

    Args:
        nested: is changed.
        key: of the value.
        value: a scalar, or a table of further keys.
        tables: full keys of options that are tables themselves, whose names are the user's and are kept as they are.
        above: what the full keys have before this one.
    """
    head, _, rest = key.partition(".")
    head = to_kebab(head)
    if rest:
        table = nested.setdefault(head, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{key!r} needs a table at {head!r}, but {head!r} is {table!r}. Give one of the two.")
        put(table, rest, value, tables, f"{above}{head}.")
    elif isinstance(value, Mapping) and above + head not in tables:
        for inner, inner_value in value.items():
            put(nested, f"{head}.{inner}", inner_value, tables, above)
    else:
        nested[head] = value


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Yield (dotted key, value) for each value of nested tables."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def explain(error: ValidationError, known: Mapping[str, tuple[Scalar, str]]) -> str:
    """Return one sentence per wrong key: the key, what came, what is allowed.

    Args:
        error: of pydantic.
        known: flat key -> (default, description) of every option.
    """
    lines = []
    for problem in error.errors():
        key = ".".join(to_kebab(str(part)) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            table = dict(flatten(problem["input"], f"{key}.")) if isinstance(problem["input"], Mapping) else [key]
            lines += [f"Unknown option {full!r}.{nearest_match_hint(full, known)}" for full in table]
            lines.append("`nufed options` lists all.")
        elif problem["type"] == "value_error":
            lines.append(f"{key or 'options'}: {problem['msg'].removeprefix('Value error, ')}.")
        elif problem["type"] == "model_type":
            example = next(option for option in known if option.startswith(f"{key}."))
            lines.append(f"{key}={problem['input']!r} is refused: {key} is a table. Set one of its options: {example}.")
        else:
            reason = f": {problem['msg'][0].lower()}{problem['msg'][1:]}" if problem["type"] != _PATTERN else ""
            described = f" It is: {known[key][1]}." if key in known else ""
            lines.append(f"{key}={problem['input']!r} is refused{reason}.{_nearest_choice(problem)}{described}")
    return " ".join(lines)


def _nearest_choice(problem: ErrorDetails) -> str:
    """Return ` Did you mean 'x'?` where one of a few names is expected and one is near."""
    if problem["type"] != "literal_error":
        return ""
    names = re.findall("'([^']+)'", problem["ctx"]["expected"])
    close = get_close_matches(str(problem["input"]), names, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
