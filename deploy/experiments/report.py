"""`nufed report`: one HTML file that needs no network, with its figures inside and once more as files beside it.

The order is that of a reader's questions: who won, how sure is that, what does it look like, what did it cost, how was
it done.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from nufed.common.durable_file import write_bytes, write_text, writing
from nufed.common.examples import Group
from nufed.deploy.experiments import report_words as words
from nufed.deploy.experiments.comparison import Comparison, exact_methods
from nufed.deploy.experiments.measures import global_table, shots_table, worse_off_table, worst_table
from nufed.deploy.experiments.privacy_figure import levels_of, privacy_figure, privacy_table, spent_lines
from nufed.deploy.experiments.report_figures import (
    adaptation_figure,
    clients_figure,
    differences_figure,
    draw,
    progress_figure,
)
from nufed.deploy.experiments.report_page import Drawn, Section, contents, figures_html, section_html, table_html
from nufed.deploy.experiments.report_style import PAGE, STYLE
from nufed.deploy.experiments.report_tables import (
    TextTable,
    clients_table,
    differences_table,
    evidence_table,
    left_out_clients,
    matrix_table,
    metrics_table,
    settings_table,
    standing_table,
    target_table,
    tuning_table,
)
from nufed.deploy.experiments.robustness import NOTE, robustness_tables
from nufed.deploy.experiments.statistics import MIN_SEEDS
from nufed.deploy.experiments.story import GROUP_NAMES, Story, verdict_on
from nufed.deploy.experiments.wording import left_out


def write_report(story: Story, path: Path) -> None:
    """Write the page to `path`, and its figures as SVG and PNG to `<stem>-figures` beside it.

    Raises:
        RunError: the system refuses.
    """
    drawn = draw(figures_of(story.main) | _privacy_figures(story))
    folder = figures_folder(path)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, (svg, png) in drawn.items():
        write_text(folder / f"{name}.svg", svg)
        write_bytes(folder / f"{name}.png", png)
    write_text(path, page(story, drawn))


def figures_folder(path: Path) -> Path:
    """Return the folder of the figures beside a report."""
    return path.with_name(f"{path.stem}-figures")


def figures_of(comparison: Comparison) -> dict[str, Callable[[], Figure]]:
    """Return file name -> what draws each figure of a comparison."""
    figures: dict[str, Callable[[], Figure]] = {}
    for group in comparison.groups:
        figures[f"adaptation-{group}"] = partial(adaptation_figure, comparison, group)
    if any(len(run.progress.rounds) > 1 for runs in comparison.runs.values() for run in runs.values()):
        for against in ("rounds", "gradients", "bytes"):
            figures[f"progress-{against}"] = partial(progress_figure, comparison, against)
    figures["clients"] = partial(clients_figure, comparison, comparison.groups[0])
    if (other := baseline_of(comparison)) and len(comparison.seeds) >= MIN_SEEDS:
        figures["differences"] = partial(differences_figure, comparison, other)
    return figures


def _privacy_figures(story: Story) -> dict[str, Callable[[], Figure]]:
    levels = levels_of(story.settings)
    return {f"privacy-{group}": partial(privacy_figure, levels, group) for group in story.main.groups if levels}


def baseline_of(comparison: Comparison) -> str:
    """Return the method that differences are shown against; empty for a single method."""
    if len(comparison.runs) < 2:
        return ""
    candidates = (comparison.baseline, comparison.reference, next(iter(comparison.runs)))
    return next(name for name in candidates if name in comparison.runs)


def page(story: Story, drawn: Drawn) -> str:
    """Return the whole page."""
    sections = list(_sections(story, drawn))
    body = [_verdict(story), contents(sections), *map(section_html, sections)]
    return Template(PAGE).substitute(title=escape(story.title), style=STYLE, body="\n".join(body))


def _sections(story: Story, drawn: Drawn) -> Iterator[Section]:
    main, captions = story.main, {name: words.caption(name, is_single=story.is_single) for name in drawn}
    yield from _standings(story)
    yield from _privacy(story, drawn, captions)
    yield Section("How the server's model adapts", figures_html(drawn, "adaptation", captions), words.ADAPTATION)
    if shots := {group: table for group in main.groups if (table := shots_table(main, group))}:
        yield Section("Few examples", _by_group(shots), words.SHOTS)
    if any(name.startswith("progress") for name in drawn):
        yield Section("What it took", figures_html(drawn, "progress", captions), words.PROGRESS)
    if len(exact_methods(main)) > 1:
        tables = {group: matrix_table(main, group) for group in main.groups}
        yield Section("Trained for ν steps, tested after s", _by_group(tables), words.MATRIX)
    yield Section(f"How {GROUP_NAMES[main.groups[0]]} differ", figures_html(drawn, "clients", captions), words.CLIENTS)
    yield Section("The worst served", _by_group({group: worst_table(main, group) for group in main.groups}))
    yield from _worse_off(main)
    if everybody := {group: table for group in main.groups if (table := global_table(main, group))}:
        yield Section("Global skill", _by_group(everybody), words.GLOBAL_SKILL)
    if main.targets():
        yield Section("To target", table_html(target_table(main), "To target"), words.TARGETS)
    if other := baseline_of(main):
        title = f"Differences to {main.labels[other]}, paired by seed"
        content = figures_html(drawn, "differences", captions) + table_html(differences_table(main, other), title)
        yield Section(title, content, words.DIFFERENCES)
    if story.findings:
        yield _findings(story)
    if story.is_attacked:
        tables_by_title = dict(robustness_tables(story))
        yield Section("Under attack", _titled(tables_by_title), NOTE)
    elif len(story.settings) > 1:
        yield _other_settings(story)
    yield _how(story)


def _privacy(story: Story, drawn: Drawn, captions: Mapping[str, str]) -> Iterator[Section]:
    if levels := levels_of(story.settings):
        tables = {group: privacy_table(levels, group) for group in story.main.groups}
        content = figures_html(drawn, "privacy", captions) + _by_group(tables)
        yield Section("What privacy costs", content, words.PRIVACY)


def _worse_off(comparison: Comparison) -> Iterator[Section]:
    if worse := {group: table for group in comparison.groups if (table := worse_off_table(comparison, group))}:
        yield Section("Who is worse off", _by_group(worse), words.WORSE_OFF)


def _standings(story: Story) -> Iterator[Section]:
    main = story.main
    if len(main.runs) > 1:
        tables = {group: standing_table(main, group) for group in main.groups}
        yield Section("How the methods stand", _by_group(tables), words.STANDING)
    yield Section("All metrics", _by_group({group: metrics_table(main, group) for group in main.groups}), words.METRICS)
    if each := clients_table(main):
        note = f"{words.CLIENTS_TABLE} {left_out_clients(main)}".strip()
        yield Section("Each client", table_html(each, "Each client"), note)


def _verdict(story: Story) -> str:
    main, single = story.main, story.is_single
    name = story.settings[-1].name
    about = f"<p class=about>{escape(story.about)}</p>" if story.about else ""
    where = f"<p>Setting <strong>{escape(name)}</strong>; the others are below.</p>" if name else ""
    parts = [f"<header><h1>{escape(story.title)}</h1>{about}</header><section class=verdict>{where}"]
    explained = [f"<p class=note>{escape(' '.join(words.glossary(main.labels.values(), is_single=single)))}</p>"]
    for group in main.groups:
        lines = verdict_on(main, group)
        parts.append(f"<p class=lead>{escape(lines[0])}</p>")
        parts += [f"<p>{escape(line)}</p>" for line in lines[1:]]
        parts += explained if explained != ["<p class=note></p>"] else []
        explained = []
    parts += [f"<p>{escape(line)}</p>" for line in spent_lines(main)]
    parts.append(f"<p class=note>{escape(words.ONE_RUN if single else words.how_sure(main))}</p></section>")
    if story.diverged:
        parts.append(f"<p class=warning>{escape(left_out(story.diverged))}</p>")
    return "\n".join(parts)


def _findings(story: Story) -> Section:
    parts = []
    for finding in story.findings:
        badge = f"<span class='badge {finding.verdict.split()[0]}'>{finding.verdict}</span>"
        head = f"<summary>{badge} <strong>{finding.name}</strong> {escape(finding.statement)}</summary>"
        note = f"<p class=note>{escape(finding.note)}</p>" if finding.note else ""
        evidence = table_html(evidence_table(finding, story.main), finding.name) if finding.evidence else ""
        parts.append(f"<details>{head}{note}{evidence}</details>")
    return Section("Statements tested", "".join(parts), words.FINDINGS)


def _other_settings(story: Story) -> Section:
    parts = []
    for graded in story.settings[:-1]:
        parts.append(f"<h3>{escape(graded.name)}</h3>")
        for group in graded.comparison.groups:
            parts += [f"<p>{escape(line)}</p>" for line in verdict_on(graded.comparison, group)]
            parts.append(table_html(standing_table(graded.comparison, group), f"{graded.name}, {group}"))
    return Section("Other settings", "".join(parts))


def _how(story: Story) -> Section:
    parts = []
    if story.choices:
        parts.append(f"<h3>Step sizes</h3><p>{words.TUNING}</p>{table_html(tuning_table(story), 'Step sizes')}")
    different, shared = settings_table(story.configs(), story.main.labels)
    if len(different.header) > 1:
        parts.append(f"<h3>Options that differ</h3>{table_html(different, 'Options that differ')}")
    parts.append(f"<h3>Options in common</h3>{table_html(shared, 'Options in common')}")
    rows = [[key.replace("_", " "), _plain(value)] for key, value in story.record.items()]
    parts.append(f"<h3>Machine and command</h3>{table_html(TextTable(['what', 'value'], rows), 'Machine and command')}")
    return Section("How it was done", f"<details><summary>Show all</summary>{''.join(parts)}</details>")


def _by_group(tables: Mapping[Group, TextTable]) -> str:
    return _titled({GROUP_NAMES[group].capitalize(): table for group, table in tables.items()})


def _titled(tables: Mapping[str, TextTable]) -> str:
    return "".join(f"<h3>{escape(title)}</h3>{table_html(table, title)}" for title, table in tables.items())


def _plain(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
