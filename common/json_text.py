"""JSON and TOML from files that somebody may have edited: whatever is wrong with the text is a ValueError."""

import json
import math
import tomllib
from collections.abc import Iterator
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


def without_nan(value: Any) -> Any:
    """Return what JSON was parsed to with null in place of NaN and infinities, which Python reads and JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return [without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value


@contextmanager
def _readable_depth() -> Iterator[None]:
    """Raise ValueError where a parser gives up on brackets inside brackets."""
    try:
        yield
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
