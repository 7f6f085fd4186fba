"""What others sent, as text that can be shown: on one line, without control characters, and short.

Error texts, names and values of other machines end in terminals, logs and files. There a line feed begins a line that
nobody wrote, an escape sequence moves the cursor or changes the window's title, a direction mark turns text around,
and two megabytes hide what is said before and after them.
"""

from collections.abc import Collection
from itertools import islice

LONGEST_ENDS = (150, 250)
"""Characters that are kept of the beginning and of the end of a long text, e.g. of a traceback."""

LONGEST_VALUE = 60
"""Characters that are shown of one value."""

_WIDEST_INTEGER = 64  # bits; Python refuses to write out integers of thousands of digits


def printable(text: str, ends: tuple[int, int] = LONGEST_ENDS) -> str:
    """Return text on one line: white space becomes single spaces, and what cannot be printed its escape sequence.

    Args:
        text: may come from anybody.
        ends: characters kept of its beginning and of its end; what lies between becomes `…`. Escape sequences count
            as the characters that they stand for.
    """
    head, tail = ends
    if len(text) > 8 * (head + tail):  # spare the work on what is cut out in any case
        text = f"{text[: 2 * head]} … {text[-2 * tail :] if tail else ''}"
    text = " ".join(text.split())
    if len(text) > head + tail:
        text = f"{text[:head]} … {text[len(text) - tail :]}".rstrip()
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def escaped(text: str) -> str:
    """Return text, whole and on as many lines, with an escape sequence in place of each other control character."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text
    )


def shown(value: object) -> str:
    """Return a value as an error message shows it; of long ones their kind and size."""
    if isinstance(value, str):
        return repr(value) if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]!r}… ({len(value)} characters)"
    if isinstance(value, int) and value.bit_length() > _WIDEST_INTEGER:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, int | float) or value is None:
        return repr(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__


def shown_names(names: Collection[str], most: int = 10) -> str:
    """Return names, separated by commas; of many the first ones."""
    listed = ", ".join(shown(name) for name in islice(names, most))
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")


def shown_shape(shape: tuple[int, ...], most: int = 8) -> str:
    """Return a shape as Python writes it; of one with many dimensions their number."""
    if len(shape) > most:
        return f"of {len(shape)} dimensions"
    return f"({', '.join(map(shown, shape))}{',' if len(shape) == 1 else ''})"
