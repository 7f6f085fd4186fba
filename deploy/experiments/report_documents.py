"""Reports in Markdown documents that are kept with the code: a summary with an overview, and a page for each suite.

A section stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. An experiment's has a page of its own,
`results/NAME.md` beside `results.md`, which is made if it is not there, unless the document itself has its marks;
runs' sections stand in the document. The overview of suites that have pages, between marks named `overview`, gets a
row for each story that is written and keeps the rows of the others. What was written by hand around the marks stays.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from nufed.common.durable_file import write_text, writing
from nufed.common.errors import RunError
from nufed.deploy.experiments.report_markdown import markdown_report, markdown_table
from nufed.deploy.experiments.report_tables import TextTable
from nufed.deploy.experiments.story import Story
from nufed.deploy.experiments.wording import estimate, steps

OVERVIEW = "overview"
_FIRST = ("suite", "seeds", "best")
_UNTESTED = "not tested"


def page_of(name: str, document: Path, text: str) -> Path:
    """Return the file of a suite's section: the document, if its text has its marks, else a page beside it."""
    if name != OVERVIEW and _begin(name) in text:
        return document
    return document.with_suffix("") / f"{name}.md"


def with_stories(
    texts: Mapping[Path, str], document: Path, stories: Mapping[str, Story], places: Mapping[str, Path]
) -> dict[Path, str]:
    """Return the texts of the files that change, each with its sections, the document with its overview.

    Args:
        texts: of the document and of the stories' places; empty for a file that is still to be made.
        document: the summary.
        stories: by the names of their sections.
        places: the file of each section.

    Raises:
        RunError: a section has no end, or the overview is no table of suites.
    """
    changed = {document: texts[document]}
    for name, story in stories.items():
        page = places[name]
        before = changed.get(page, texts[page])
        if page != document and not before.strip():
            before = f"# {name}\n\nOne of the suites of [{document.stem}](../{quote(document.name)}).\n"
        changed[page] = with_section(before, name, markdown_report(story))
    links = {name: f"{page.parent.name}/{page.name}" for name, page in places.items() if page != document}
    if links:
        old = section_of(changed[document], OVERVIEW) or ""
        table = merged(read_overview(old), overview_table({name: stories[name] for name in links}, links))
        changed[document] = with_section(changed[document], OVERVIEW, markdown_table(table))
    return changed


def write_documents(texts: Mapping[Path, str], document: Path) -> None:
    """Write the files, the document last: whoever follows its links finds their pages.

    Raises:
        RunError: the system refuses.
    """
    for path in sorted(texts, key=lambda each: each == document):
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        write_text(path, texts[path])


def overview_table(stories: Mapping[str, Story], links: Mapping[str, str]) -> TextTable:
    """Return a row for each suite's main setting: the best method, on new clients if there are any, and H1 to H5.

    Args:
        stories: by suite.
        links: to their pages, from the document.
    """
    names = list(dict.fromkeys(finding.name for story in stories.values() for finding in story.findings))
    rows = []
    for name, story in stories.items():
        comparison, verdicts = story.main, {finding.name: finding.verdict for finding in story.findings}
        group, step = comparison.groups[0], comparison.primary_step
        best = comparison.best(group, step)
        value = estimate(comparison.mean(best, group, step), comparison.measure)
        won = f"{comparison.labels[best]}: {value}, {group}, {steps(step)}"
        rows.append(
            [
                f"[{name}]({quote(links[name])})",
                str(len(comparison.seeds)),
                won,
                *(verdicts.get(each, _UNTESTED) for each in names),
            ]
        )
    return TextTable([*_FIRST, *names], rows)


def read_overview(section: str) -> TextTable:
    """Return the table of an overview as it stands in a document.

    Raises:
        RunError: it is no such table.
    """
    header, *rows = [_cells(line) for line in section.splitlines() if line.strip()] or [list(_FIRST)]
    body = rows[1:]  # behind the rule
    if tuple(header[: len(_FIRST)]) != _FIRST or any(len(row) != len(header) for row in body):
        raise RunError(
            f"Expected a table of {', '.join(_FIRST)} and statements between the marks of the {OVERVIEW}, whose rows "
            "are kept, but found something else. Remove what is between the marks, and name every folder once."
        )
    return TextTable(header, body)


def merged(old: TextTable, new: TextTable) -> TextTable:
    """Return the rows of both tables in their order, the new one's in place of the old one's of the same suites."""
    header = list(dict.fromkeys([*old.header, *new.header]))
    rows: dict[str, list[str]] = {}
    for table in (old, new):
        for row in table.rows:
            cells = dict(zip(table.header, row, strict=True))
            rows[_name(row[0])] = [cells.get(column, _UNTESTED) for column in header]
    return TextTable(header, list(rows.values()))


def section_of(document: str, name: str) -> str | None:
    """Return what stands between the marks of a section; None if the document has none.

    Raises:
        RunError: the section has no end.
    """
    _, found, rest = document.partition(_begin(name))
    section, closed, _ = rest.partition(_end(name))
    if found and not closed:
        raise RunError(
            f"Expected {_end(name)} behind {_begin(name)}, but the document lacks it. Write it where the section ends."
        )
    return section if found else None


def with_section(document: str, name: str, text: str) -> str:
    """Return the document with the text between `<!-- begin NAME -->` and `<!-- end NAME -->`, replaced or appended.

    What was written by hand around it stays.

    Raises:
        RunError: the section has no end.
    """
    section = f"{_begin(name)}\n{text.strip()}\n{_end(name)}"
    if section_of(document, name) is None:
        return f"{document.rstrip()}\n\n{section}\n".lstrip()
    before, _, rest = document.partition(_begin(name))
    return before + section + rest.partition(_end(name))[2]


def _begin(name: str) -> str:
    return f"<!-- begin {name} -->"


def _end(name: str) -> str:
    return f"<!-- end {name} -->"


def _cells(line: str) -> list[str]:
    inner: Sequence[str] = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [cell.strip().replace("\\|", "|") for cell in inner]


def _name(cell: str) -> str:
    """Return the suite of a cell, with or without a link."""
    link = re.fullmatch(r"\[(.*)\]\(.*\)", cell)
    return link.group(1) if link else cell
