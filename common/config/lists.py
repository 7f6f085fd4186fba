r"""Options that are lists or tables, as the text that Flower carries: every option travels as one scalar.

| option | text | where a name holds what separates names |
|---|---|---|
| list of names | `age,sex` | `["age", "sex, at birth"]`, as JSON |
| list of numbers | `54.5,131` | |
| table of names | `sex:f\|m;thal:3\|6` | `{"sex": ["f", "m"], "a;b": ["1"]}`, as JSON |

TOML, JSON and Python may give lists and tables; they become the shorter text wherever that reads back as the same
names, so that a run's config.json stays readable by earlier versions.
"""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic.fields import FieldInfo

ListKind = Literal["names", "numbers", "table"]

LIST = "list"
"""Key of a field's `json_schema_extra` that says which kind of list its text stands for."""


def list_kind(field: FieldInfo) -> ListKind | None:
    """Return what an option's text is a list of; None for an option that is no list."""
    extra = field.json_schema_extra
    kind = extra.get(LIST) if isinstance(extra, dict) else None
    return kind if kind in ("names", "numbers", "table") else None  # type: ignore[return-value]


def as_text(value: object, kind: ListKind) -> object:
    """Return the text of a list or table given for an option; what is neither comes back as it is.

    Raises:
        ValueError: something in it is no name or number, or a name cannot be written.
    """
    if kind == "table":
        return write_table(_table(value)) if isinstance(value, Mapping) else value
    if not isinstance(value, list | tuple):
        return value
    return write_names([_name(each) for each in value]) if kind == "names" else ",".join(map(_number, value))


def write_names(names: Sequence[str]) -> str:
    """Return the text that `read_names` reads as these names.

    Raises:
        ValueError: a name holds a character that cannot be written on one line.

    Examples:
        >>> write_names(["age", "sex"]), write_names(["sex, at birth"])
        ('age,sex', '["sex, at birth"]')
    """
    wanted = tuple(name.strip() for name in names)
    for name in wanted:
        check_line(name)
    plain = ",".join(wanted)
    return plain if read_names(plain) == wanted else json.dumps(list(wanted), ensure_ascii=False)


def read_names(text: str) -> tuple[str, ...]:
    """Return the names of a list's text, without blanks around them.

    Examples:
        >>> read_names("age, sex"), read_names('["sex, at birth"]'), read_names("")
        (('age', 'sex'), ('sex, at birth',), ())
    """
    found = _from_json(text, "[")
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return tuple(name.strip() for name in found)
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def write_table(table: Mapping[str, Sequence[str]]) -> str:
    """Return the text that `read_table` reads as this table.

    Raises:
        ValueError: a name or value holds a character that cannot be written on one line, or a name has no values.
    """
    wanted = {name.strip(): tuple(value.strip() for value in values) for name, values in table.items()}
    if len(wanted) < len(table):
        raise ValueError("one name stands twice; remove one")
    for name, values in wanted.items():
        if not values:
            raise ValueError(f"{name!r} has no values; list them")
        for text in (name, *values):
            check_line(text)
    plain = ";".join(f"{name}:{'|'.join(values)}" for name, values in wanted.items())
    try:
        if dict(read_table(plain)) == wanted:
            return plain
    except ValueError:
        pass
    return json.dumps({name: list(values) for name, values in wanted.items()}, ensure_ascii=False)


def read_table(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return (name, values) of each entry of a table's text.

    Raises:
        ValueError: with the part that is no `NAME:VALUE|VALUE`.
    """
    found = _from_json(text, "{")
    if isinstance(found, list) and all(_are_names(values) for _, values in found):
        return [(name.strip(), tuple(value.strip() for value in values)) for name, values in found]
    result = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, values = part.rpartition(":")
        split = tuple(value.strip() for value in values.split("|"))
        if not colon or not name.strip() or "" in split:
            raise ValueError(part)
        result.append((name.strip(), split))
    return result


def check_line(name: str) -> None:
    """Refuse a name that cannot stand on one line.

    Raises:
        ValueError: it holds a line break or another control character.
    """
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in name):
        raise ValueError(f"the name {name!r} holds a line break or another control character; rename it")


def _table(value: Mapping[object, object]) -> dict[str, list[str]]:
    table = {}
    for name, values in value.items():
        if not isinstance(values, list | tuple):  # pydantic takes a ValueError alone as a refusal
            raise ValueError(f"expected a list of values for {name!r}, got {values!r}; write {name!r} = [...]")  # noqa: TRY004
        table[_name(name)] = [_name(each) for each in values]
    return table


def _name(value: object) -> str:
    """Return a name; truth values are written as `nufed.common.data.private.task.canonical` writes them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    raise ValueError(f"expected names in the list, got {value!r}; write each in quotes")


def _number(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return repr(value)
    raise ValueError(f"expected finite numbers in the list, got {value!r}; correct it")


def _from_json(text: str, opening: str) -> object:
    """Return the JSON value of a text that begins with a bracket, objects as pairs; None for any other text."""
    if not text.lstrip().startswith(opening):
        return None
    try:
        return json.loads(text, object_pairs_hook=list)  # pairs, so that a name that stands twice is seen
    except (ValueError, RecursionError):
        return None


def _are_names(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(each, str) and each.strip() for each in values)
