"""`nufed report`: one HTML file that needs no network, with its figures inside and once more as files beside it.

The order is that of a reader's questions: who won, how sure is that, what does it look like, what did it cost, how was
it done.
"""

from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from nufed.common.durable_file import write_bytes, write_text, writing
from nufed.deploy.experiments.comparison import Comparison, exact_methods
from nufed.deploy.experiments.privacy_figure import levels_of, privacy_figure, privacy_table, spent_lines
from nufed.deploy.experiments.report_figures import (
    adaptation_figure,
    clients_figure,
    differences_figure,
    draw,
    progress_figure,
)
from nufed.deploy.experiments.report_style import PAGE, STYLE
from nufed.deploy.experiments.report_tables import (
    TextTable,
    clients_table,
    differences_table,
    evidence_table,
    matrix_table,
    metrics_table,
    settings_table,
    standing_table,
    target_table,
    tuning_table,
)
from nufed.deploy.experiments.robustness import NOTE, robustness_tables
from nufed.deploy.experiments.story import GROUP_NAMES, Story, verdict_on
from nufed.deploy.experiments.wording import left_out

Drawn = Mapping[str, tuple[str, bytes]]


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
    if (other := baseline_of(comparison)) and len(comparison.seeds) > 1:
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
    main, parts = story.main, [_verdict(story)]
    if levels := levels_of(story.settings):
        tables = "".join(
            f"<h3>{GROUP_NAMES[group].capitalize()}</h3>{_table(privacy_table(levels, group))}" for group in main.groups
        )
        parts.append(_pictures("What privacy costs", drawn, "privacy", _PRIVACY) + _section("In numbers", tables, ""))
    parts += [_pictures("How the server's model adapts", drawn, "adaptation", _ADAPTATION)]
    if any(name.startswith("progress") for name in drawn):
        parts.append(_pictures("What it took", drawn, "progress", _PROGRESS))
    if len(exact_methods(main)) > 1:
        parts += [_matrix(main)]
    parts.append(_pictures(f"How {GROUP_NAMES[main.groups[0]]} differ", drawn, "clients", _CLIENTS))
    if main.targets():
        parts.append(_section("Rounds and gradients to target", _table(target_table(main)), _TARGETS))
    if other := baseline_of(main):
        figure = _figures(drawn, "differences")
        content = figure + _table(differences_table(main, other))
        parts.append(_section(f"Differences to {main.labels[other]}, paired over seeds", content, _DIFFERENCES))
    parts += [_findings(story)] if story.findings else []
    if story.is_attacked:
        tables = "".join(f"<h3>{escape(title)}</h3>{_table(table)}" for title, table in robustness_tables(story))
        parts.append(_section("Under attack", tables, NOTE))
    elif len(story.settings) > 1:
        parts.append(_other_settings(story))
    parts.append(_how(story))
    return Template(PAGE).substitute(title=escape(story.title), style=STYLE, body="\n".join(parts))


def _verdict(story: Story) -> str:
    main = story.main
    name = story.settings[-1].name
    about = f"<p class=about>{escape(story.about)}</p>" if story.about else ""
    where = f"<p>Setting <strong>{escape(name)}</strong>; the others are below.</p>" if name else ""
    parts = [f"<header><h1>{escape(story.title)}</h1>{about}</header><section class=verdict>{where}"]
    for group in main.groups:
        lines = verdict_on(main, group)
        parts.append(f"<p class=lead>{escape(lines[0])}</p>")
        parts += [f"<p>{escape(line)}</p>" for line in lines[1:]]
    parts += [f"<p>{escape(line)}</p>" for line in spent_lines(main)]
    seeds = f"{len(main.seeds)} seed{'s' if len(main.seeds) > 1 else ''}"
    signs = "" if main.sign > 0 else f" Differences of {main.measure} are signed so that + is better: less of it."
    parts.append(
        f"<p class=note>{seeds}; ± and [ ] are 95 % intervals over seeds, differences paired and Holm-corrected. "
        f"“Better” only where the interval excludes 0.{signs}</p></section>"
    )
    if story.diverged:
        parts.append(f"<p class=warning>{escape(left_out(story.diverged))}</p>")
    if len(main.runs) > 1:
        for group in main.groups:
            parts.append(_section(GROUP_NAMES[group].capitalize(), _table(standing_table(main, group)), _STANDING))
    for group in main.groups:
        parts.append(
            _section(f"{GROUP_NAMES[group].capitalize()}: all metrics", _table(metrics_table(main, group)), _METRICS)
        )
    if each := clients_table(main):
        parts.append(_section("Each client", _table(each), _CLIENTS_TABLE))
    return "\n".join(parts)


def _matrix(comparison: Comparison) -> str:
    content = "".join(
        f"<h3>{GROUP_NAMES[group].capitalize()}</h3>{_table(matrix_table(comparison, group))}"
        for group in comparison.groups
    )
    return _section("Trained for ν steps, tested after s", content, _MATRIX)


def _findings(story: Story) -> str:
    parts = []
    for finding in story.findings:
        badge = f"<span class='badge {finding.verdict.split()[0]}'>{finding.verdict}</span>"
        head = f"<summary>{badge} <strong>{finding.name}</strong> {escape(finding.statement)}</summary>"
        note = f"<p class=note>{escape(finding.note)}</p>" if finding.note else ""
        evidence = _table(evidence_table(finding, story.main)) if finding.evidence else ""
        parts.append(f"<details>{head}{note}{evidence}</details>")
    return _section("Statements tested", "".join(parts), _FINDINGS)


def _other_settings(story: Story) -> str:
    parts = []
    for graded in story.settings[:-1]:
        parts.append(f"<h3>{escape(graded.name)}</h3>")
        for group in graded.comparison.groups:
            parts += [f"<p>{escape(line)}</p>" for line in verdict_on(graded.comparison, group)]
            parts.append(_table(standing_table(graded.comparison, group)))
    return _section("Other settings", "".join(parts), "")


def _how(story: Story) -> str:
    parts = []
    if story.choices:
        parts.append(f"<h3>Step sizes</h3><p>{_TUNING}</p>{_table(tuning_table(story))}")
    different, shared = settings_table(story.configs(), story.main.labels)
    if len(different.header) > 1:
        parts.append(f"<h3>Options that differ</h3>{_table(different)}")
    parts.append(f"<h3>Options in common</h3>{_table(shared)}")
    record = TextTable(
        ["what", "value"], [[key.replace("_", " "), _plain(value)] for key, value in story.record.items()]
    )
    parts.append(f"<h3>Machine and command</h3>{_table(record)}")
    return _section("How it was done", f"<details><summary>Show all</summary>{''.join(parts)}</details>", "")


def _plain(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _section(title: str, content: str, note: str) -> str:
    said = f"<p class=note>{note}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{content}</section>"


def _pictures(title: str, drawn: Drawn, prefix: str, note: str) -> str:
    return _section(title, f"<div class=figures>{_figures(drawn, prefix)}</div>", note)


def _figures(drawn: Drawn, prefix: str) -> str:
    return "".join(
        f"<figure>{_named(name, svg)}<figcaption>{escape(_CAPTIONS[name])}</figcaption></figure>"
        for name, (svg, _) in drawn.items()
        if name.startswith(prefix)
    )


def _named(name: str, svg: str) -> str:
    """Return the markup with a name for those who do not see it."""
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(_CAPTIONS[name])}" ', 1)


def _table(table: TextTable) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(f"<td{_shade(table, index, column)}>{escape(cell)}</td>" for column, cell in enumerate(row))
        rows.append(f"<tr class=strong>{cells}</tr>" if index in table.strong else f"<tr>{cells}</tr>")
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _shade(table: TextTable, row: int, column: int) -> str:
    shade = table.shades.get((row, column))
    if shade is None:
        return ""
    weight = ";font-weight:700" if shade == 1 else ""
    return f" style='background:rgba(0,114,178,{0.45 * shade:.2f}){weight}'"


_CAPTIONS = {
    "adaptation-new": "New clients, never in training. Band: 95 % interval over seeds, for up to six methods.",
    "adaptation-participating": "Participating clients. Band: 95 % interval over seeds, for up to six methods.",
    "privacy-new": "New clients after s* steps, against ε. Bars: lowest and highest seed.",
    "privacy-participating": "Participating clients after s* steps, against ε. Bars: lowest and highest seed.",
    "progress-rounds": "Participating clients after s* steps, against rounds: what communication costs.",
    "progress-gradients": "The same against computation (logarithmic): larger ν costs more for each round.",
    "progress-bytes": "The same against bytes.",
    "clients": "All clients of all seeds after s* steps. Box: middle half; whiskers: 5 and 95 %; line: median.",
    "differences": "Paired differences after s* steps, with Holm-corrected 95 % intervals.",
}
_STANDING = (
    "Best first. Against the best: paired, Holm-corrected. Worst tenth and sd: bootstrap over seeds and clients."
)
_METRICS = (
    "Means over clients and seeds after s* steps. The same answer: the commonest of each client's support split, or "
    "its mean, given to every test example; a model that is no better has learned nothing that helps."
)
_CLIENTS_TABLE = "After s* steps; [ ]: 95 % interval, where a client was judged on fewer than 100 examples."
_ADAPTATION = "Each client starts from the same model and takes s full steps on its own support data."
_PROGRESS = "Mean over seeds and participating clients."
_PRIVACY = "Each setting with its own ε; none: the same run without clipping and noise."
_MATRIX = "Exact methods (ν = 0 is FedAvg). Darker is better within a column; the best of each column is bold."
_CLIENTS = "A mean can hide clients that are served badly."
_TARGETS = "Median over seeds (range). “>” means not reached within the run. Gradients: equivalents of one client."
_DIFFERENCES = "Positive is better."
_FINDINGS = "Positive differences speak for a statement. Open one to see its comparisons."
_TUNING = (
    "Chosen on validation data of participating clients with seeds of their own; every method had as many points, "
    "but those that take over another method's inner step size."
)
