"""What all sections of the configuration share."""

import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from nufed.common.config.lists import as_text, list_kind
from nufed.common.errors import ConfigError

Scalar = bool | int | float | str

_ZERO = re.compile(r"[-+]?[0_]*\.?[0_]*(e.*)?", re.IGNORECASE)


def to_kebab(name: str) -> str:
    """Return the wire and TOML spelling of a Python field name."""
    return name.replace("_", "-")


class Section(BaseModel):
    """Frozen, strict about unknown keys, kebab-case outside and snake_case inside."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_kebab,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_kept(cls, value: object, info: ValidationInfo) -> object:
        """Refuse the text of a number that is not zero and would become zero, e.g. `1e-400`."""
        if not isinstance(value, str) or cls.model_fields[info.field_name or ""].annotation is not float:
            return value
        if _reads_as_zero(value) and not _ZERO.fullmatch(value.strip()):
            raise PydanticCustomError("underflow", "Input is too small, and would become 0")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object, info: ValidationInfo) -> object:
        """Read lists and tables where an option is one; inside they are the text that Flower carries."""
        kind = list_kind(cls.model_fields[info.field_name or ""])
        return value if kind is None else as_text(value, kind)

    if not TYPE_CHECKING:  # type checkers know the fields from pydantic

        def __init__(self, **values: Any) -> None:
            """Make a section from its fields.

            Raises:
                ConfigError: naming each field that is unknown or out of range, its value and what is allowed.
            """
            try:
                super().__init__(**values)
            except ValidationError as error:
                from nufed.common.config.parsing import explain

                raise ConfigError(explain(error, descriptions(type(self)))) from error

        __init__.__pydantic_base_init__ = True  # tables inside tables are still checked together


def _reads_as_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def table_options(section: type[Section], prefix: str = "") -> frozenset[str]:
    """Return the flat keys of the options whose value may be a table of names of the user's own."""
    found: set[str] = set()
    for name, field in section.model_fields.items():
        key = prefix + to_kebab(name)
        if isinstance(field.default, Section):
            found |= table_options(type(field.default), f"{key}.")
        elif list_kind(field) == "table":
            found.add(key)
    return frozenset(found)


def descriptions(section: type[Section]) -> dict[str, tuple[Scalar, str]]:
    """Return flat key -> (default, description) of a section's options, those of its own sections included."""
    result: dict[str, tuple[Scalar, str]] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            for inner, declared in descriptions(type(field.default)).items():
                result[f"{to_kebab(name)}.{inner}"] = declared
        else:
            result[to_kebab(name)] = (field.default, field.description or "")
    return result
