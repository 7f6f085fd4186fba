"""Records of files that anybody may have written: what is no number where one belongs is left out of them."""

from collections.abc import Iterable, Mapping
from typing import Any

_NUMBERS = (
    *("time", "seconds", "client_seconds", "loss", "bytes_up", "bytes_down", "round", "first_round", "num_rounds"),
    *("primary_step", "num_parameters", "num_support", "sampled", "replied", "rejected", "failed", "missing"),
    *("gradient_evaluations", "hvps", "dropped", "simulated_seconds"),
)
_SCORES = ("before", "after")
_LARGEST = 1e18
"""More than any run counts, lasts or sends; what is larger overflows once it is added up or shown as a date."""


def sound_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose fields that hold numbers hold usable ones, or are left out."""
    sound = {name: value for name, value in record.items() if name not in _NUMBERS or is_number(value)}
    for name in _SCORES:
        if name in sound:
            sound[name] = sound_scores(sound[name])
    return sound


def sound_scores(values: Any) -> dict[str, Any]:
    """Return the entries of a mapping that are usable numbers; none of what is no mapping."""
    return {name: each for name, each in values.items() if is_number(each)} if isinstance(values, Mapping) else {}


def sound_curve(values: Iterable[Any]) -> list[float | None]:
    """Return a curve with None for what is not finite.

    Raises:
        ValueError: it is empty, or holds what is no number.
    """
    curve = list(values)
    if not curve or not all(each is None or isinstance(each, int | float) for each in curve):
        raise ValueError("a curve holds numbers")
    return [each if is_number(each) else None for each in curve]


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number that can be added up and shown."""
    return isinstance(value, int | float) and abs(value) < _LARGEST  # which NaN is not
