"""Texts and options as anybody may see them: a path of this machine becomes its last part."""

import re
from collections.abc import Mapping
from typing import Any

_PATH = re.compile(
    r"(?<![\w.:/])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[^\s/\\:;,'\"()?]+[/\\])+|(?<=:)[/\\](?:[^\s/\\:;,'\"()?]+[/\\])+"
)
"""Folders of a path: what stands before its last part."""


_MAY_NAME_FILES = frozenset({"data.source", "federation.client-speeds", "model.init", "model.name"})
"""Options that hold a path, some of them after a word and a colon."""


def without_folders(text: str) -> str:
    """Return a text in which every path has lost its folders.

    Examples:
        >>> without_folders("Expected to write /home/ann/runs/summary.json, but the system refused")
        'Expected to write …/summary.json, but the system refused'
        >>> without_folders("npz:/data/ward-3/patients.npz"), without_folders("3/4 of 5 MB/s")
        ('npz:…/patients.npz', '3/4 of 5 MB/s')
    """
    return _PATH.sub("…/", text)


def shareable_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options whose paths have lost their folders, also those that begin in the working folder.

    Examples:
        >>> shareable_options({"data.source": "csv:private/ward.csv?label=died", "seed": 0})
        {'data.source': 'csv:…/ward.csv?label=died', 'seed': 0}
        >>> shareable_options({"federation.client-speeds": "file:ward-3/speeds.csv", "model.init": "ward-3/model.pt"})
        {'federation.client-speeds': 'file:…/speeds.csv', 'model.init': '…/model.pt'}
    """
    return {key: _shareable(key, value) for key, value in options.items()}


def _shareable(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if key in _MAY_NAME_FILES and "/" in value:
        kind, colon, path = value.partition(":")
        place, question, rest = (path if colon else kind).partition("?")
        short = f"…/{place.rstrip('/').rpartition('/')[2]}" if "/" in place else place
        return f"{kind}:{short}{question}{rest}" if colon else f"{short}{question}{rest}"
    return without_folders(value)
