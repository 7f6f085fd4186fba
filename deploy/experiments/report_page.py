"""The pieces of a report's page: sections with contents, tables that scroll visibly, figures in two themes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from nufed.deploy.experiments.report_tables import TextTable

Drawn = Mapping[str, tuple[str, bytes]]
"""File name -> (SVG, PNG) of a figure."""
NARROW, MIDDLE = 4, 6
"""Columns that a telephone, and a tablet, shows side by side."""

# what Matplotlib was told to draw with -> the name of the color in the style sheet, which has two themes
_THEMED = {
    "#000000": "ink",
    "#ffffff": "paper",
    "#e6e6e6": "line",
    "#4c4c4c": "strong",
    "#666666": "soft",
    "#999999": "soft",
    "#cfe3f1": "box",
    "#0072b2": "curve",
}
_COLOR = re.compile("|".join(_THEMED))


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        title: its heading, and its line in the table of contents.
        content: HTML.
        note: text below the heading.
    """

    title: str
    content: str
    note: str = ""


def contents(sections: Sequence[Section]) -> str:
    """Return the table of contents; its lines lead to the sections."""
    links = "".join(f"<li><a href='#{_anchor(each.title)}'>{escape(each.title)}</a></li>" for each in sections)
    return f"<nav aria-label='Contents'><details open><summary>Contents</summary><ul>{links}</ul></details></nav>"


def section_html(section: Section) -> str:
    """Return a section that the table of contents leads to."""
    note = f"<p class=note>{escape(section.note)}</p>" if section.note else ""
    heading = f"<h2>{escape(section.title)}</h2>"
    return f"<section id='{_anchor(section.title)}'>{heading}{note}{section.content}</section>"


def table_html(table: TextTable, name: str) -> str:
    """Return a table; one that is wider than a telephone says there that it goes on, and scrolls by keyboard too.

    Args:
        table: what to show.
        name: what it is about, for those who do not see it.
    """
    head = "".join(f"<th scope=col>{escape(each)}</th>" for each in table.header)
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(f"<td{_shade(table, index, column)}>{escape(cell)}</td>" for column, cell in enumerate(row))
        rows.append(f"<tr class=strong>{cells}</tr>" if index in table.strong else f"<tr>{cells}</tr>")
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    region = f"class=scroll tabindex=0 role=region aria-label='{escape(name)}'"
    columns = len(table.header)
    if columns <= NARROW:
        return f"<div {region}>{body}</div>"
    on = "narrow" if columns <= MIDDLE else "narrow middle"
    return f"<p class='hint {on}'>{columns} columns: scroll sideways →</p><div {region}>{body}</div>"


def figures_html(drawn: Drawn, prefix: str, captions: Mapping[str, str]) -> str:
    """Return the figures whose names begin so, in colors that follow the page's theme."""
    figures = "".join(
        f"<figure>{_named(themed(svg), captions[name])}<figcaption>{escape(captions[name])}</figcaption></figure>"
        for name, (svg, _) in drawn.items()
        if name.startswith(prefix)
    )
    return f"<div class=figures>{figures}</div>"


def themed(svg: str) -> str:
    """Return a figure with the style sheet's colors in the place of black, white, greys and dark blue."""
    return _COLOR.sub(lambda found: f"var(--{_THEMED[found[0]]}, {found[0]})", svg)


def _named(svg: str, caption: str) -> str:
    """Return the markup with a name for those who do not see it."""
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _shade(table: TextTable, row: int, column: int) -> str:
    shade = table.shades.get((row, column))
    if shade is None:
        return ""
    weight = ";font-weight:700" if shade == 1 else ""
    return f" style='background:rgba(0,114,178,{0.45 * shade:.2f}){weight}'"
