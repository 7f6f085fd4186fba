"""JSON and TOML from files that somebody may have edited, whose faults are all ValueErrors; and values for JSON."""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_LARGEST = 2**24
"""Bytes that a file of options may have; /dev/zero has no end."""


def read_options_text(path: Path) -> str:
    """Return the UTF-8 text of a file of options, without the mark that Windows puts at its start.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8 text, or has more bytes than any file of options.
    """
    with path.open("rb") as file:
        return options_text(file)


def options_text(file: BinaryIO) -> str:
    """Return the text of an open file as `read_options_text` does.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8 text, or has more bytes than any file of options.
    """
    content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST // 2**20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text ({error.reason})") from error


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is no JSON, or nested too deeply to be read.
    """
    with _readable_depth():
        return json.loads(text)


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that a text consists of.

    Raises:
        ValueError: it is no JSON, or JSON of another kind.
    """
    value = parse_json(text)
    if isinstance(value, dict):
        return value
    raise ValueError(f"it is no JSON object in braces but {type(value).__name__}")


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text says.

    Raises:
        ValueError: it is no TOML, or nested too deeply to be read.
    """
    with _readable_depth():
        return tomllib.loads(text)


def json_ready(value: Any) -> Any:
    """Return `value` in JSON's own types: NaN and infinities become null, NumPy scalars and tuples plain ones."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    import numpy as np  # loaded where it may be needed: commands that compute nothing tell things as JSON too

    return json_ready(value.item()) if isinstance(value, np.generic) else value


@contextmanager
def _readable_depth() -> Iterator[None]:
    """Raise ValueError where a parser gives up on brackets inside brackets."""
    try:
        yield
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
