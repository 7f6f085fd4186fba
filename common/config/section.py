"""What all sections of the configuration share."""

from pydantic import BaseModel, ConfigDict

Scalar = bool | int | float | str


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
