"""How a csv file is written: its options in a SPEC, and what a number looks like in it.

sep=;            the separator of fields (`tab` for a tab); encoding=latin-1: of the text, UTF-8 without it
decimal=,        the mark before a number's decimals; thousands=.: the mark between its groups of three digits
                 (`space` for blanks of any width), which may be left out but not misplaced
skip=2           lines before the header; header=none: there is none, and the columns are called 1, 2, 3 …
bad=drop         leaves rows out that cannot be read, and logs how many: another number of fields than the header,
                 misplaced quotes, text where a number is declared. A name that is read and not declared is refused all
                 the same.
"""

import codecs
import re
from dataclasses import dataclass, field

from nufed.common.data.private.spec import PrivateSpec
from nufed.common.errors import ConfigError

_SPACES, _APOSTROPHES = "[ \u00a0\u2009\u202f]", "['\u2019]"
_MARKS = {".": r"\.", ",": ",", "'": _APOSTROPHES, "_": "_", "space": _SPACES, " ": _SPACES}
_MOST_SKIPPED = 1_000_000


@dataclass(frozen=True)
class Numerals:
    """What a number looks like in a file.

    Attributes:
        decimal: the mark before the decimals, `.` or `,`.
        thousands: the mark between groups of three digits, a key of the marks above; empty if there is none.
    """

    decimal: str = "."
    thousands: str = ""
    _pattern: "re.Pattern[str]" = field(init=False, repr=False, compare=False)
    _marks: "re.Pattern[str] | None" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile both patterns."""
        point, whole = re.escape(self.decimal), "[0-9]+"
        if self.thousands:
            mark = _MARKS[self.thousands]
            # The same mark throughout: 1.234 567 is no number.
            whole = f"(?:[0-9]{{1,3}}(?P<mark>{mark})[0-9]{{3}}(?:(?P=mark)[0-9]{{3}})*|[0-9]+)"
        text = rf"[+-]?(?:{whole}(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?"
        object.__setattr__(self, "_pattern", re.compile(text))
        object.__setattr__(self, "_marks", re.compile(_MARKS[self.thousands]) if self.thousands else None)

    @property
    def are_plain(self) -> bool:
        """Return whether numbers are written as programs write them."""
        return self.decimal == "." and not self.thousands

    def plain(self, text: str) -> str | None:
        """Return a number as programs write it; None of any other text.

        Examples:
            >>> Numerals(",", ".").plain("1.234,5"), Numerals(",", ".").plain("12.34"), Numerals().plain("1,234")
            ('1234.5', None, None)
        """
        if self._pattern.fullmatch(text) is None:
            return None
        if self._marks is not None:
            text = self._marks.sub("", text)
        return text.replace(self.decimal, ".")

    def as_name(self, text: str) -> str:
        """Return a name; one that is a number with decimals, 3,0, as programs write it, 3.0."""
        if self.decimal == "." or self.decimal not in text:
            return text
        return Numerals(self.decimal).plain(text) or text


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    Attributes:
        separator: of the fields.
        encoding: name of a codec.
        numerals: what numbers look like.
        skip: lines before the header, or before the first row where there is no header.
        has_header: whether the columns are named.
        drops_bad: whether rows that cannot be read are left out.
    """

    separator: str = ","
    encoding: str = "utf-8-sig"
    numerals: Numerals = Numerals()
    skip: int = 0
    has_header: bool = True
    drops_bad: bool = False


def read_dialect(spec: PrivateSpec) -> Dialect:
    """Return how the file of a spec is written.

    Raises:
        ConfigError: an option is refused, or two of them contradict each other.
    """
    drops_bad = spec.choice("bad", ("error", "drop"), "error") == "drop"
    if spec.kind != "csv":
        return Dialect(drops_bad=drops_bad)
    separator = {"tab": "\t"}.get(given := spec.options.get("sep", ","), given)
    if len(separator) != 1 or separator in '"\r\n ':
        raise ConfigError(f"--data: sep={given!r} is refused: expected one character, or tab.")
    has_header = spec.choice("header", ("first", "none"), "first") == "first"
    return Dialect(separator, _encoding(spec), _numerals(spec), _skip(spec), has_header, drops_bad)


def _numerals(spec: PrivateSpec) -> Numerals:
    decimal = spec.choice("decimal", (".", ","), ".")
    thousands = spec.choice("thousands", tuple(_MARKS), "") if "thousands" in spec.options else ""
    if decimal == thousands:
        raise ConfigError(
            f"--data: decimal={decimal} and thousands={thousands} are one mark, so that no number could be read. Leave "
            "one out, or correct it."
        )
    return Numerals(decimal, thousands)


def _encoding(spec: PrivateSpec) -> str:
    name = spec.options.get("encoding", "utf-8")
    try:
        "".encode(name)  # refuses codecs that are none of text, too
        found = codecs.lookup(name).name
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"--data: encoding={name!r} is unknown. Type one that Python knows, e.g. utf-8, latin-1, cp1252 or utf-16."
        ) from error
    return "utf-8-sig" if found == "utf-8" else found


def _skip(spec: PrivateSpec) -> int:
    text = spec.options.get("skip", "0")
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(_MOST_SKIPPED)) or int(text) > _MOST_SKIPPED:
        raise ConfigError(
            f"--data: skip={text!r} is refused: expected how many lines stand before the header, 0 to {_MOST_SKIPPED}."
        )
    return int(text)
