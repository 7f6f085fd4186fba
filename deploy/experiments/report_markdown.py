"""A report's verdict and tables as a section of Markdown."""

from collections.abc import Iterator

from nufed.common.examples import Group
from nufed.deploy.experiments.comparison import Comparison, exact_methods
from nufed.deploy.experiments.hypotheses import Finding
from nufed.deploy.experiments.measures import global_table, shots_table, worse_off_table, worst_table
from nufed.deploy.experiments.privacy_figure import levels_of, privacy_table, spent_lines
from nufed.deploy.experiments.report import baseline_of
from nufed.deploy.experiments.report_tables import (
    TextTable,
    differences_table,
    evidence_table,
    matrix_table,
    metrics_table,
    standing_table,
    target_table,
    tuning_table,
)
from nufed.deploy.experiments.report_words import ONE_RUN, glossary, how_sure
from nufed.deploy.experiments.robustness import NOTE, robustness_tables
from nufed.deploy.experiments.story import GROUP_NAMES, Story, verdict_on
from nufed.deploy.experiments.wording import left_out, steps
from nufed.server.progress_lines import duration


def markdown_report(story: Story, *, level: int = 2) -> str:
    """Return a section with the verdict, the main tables and how they came about.

    Args:
        story: what to tell.
        level: of the section's heading.
    """
    heading, small = "#" * level, "#" * (level + 1)
    parts = [f"{heading} {story.title}", story.about, _provenance(story)]
    parts += _against_epsilon(story)
    parts += _under_attack(story, small) if story.is_attacked else _in_settings(story, small)
    parts += [_findings(story)] if story.findings else []
    if story.choices and any(choice.scored for choice in story.choices.values()):
        parts += ["Step sizes:", markdown_table(tuning_table(story))]
    if story.diverged:
        parts.append(left_out(story.diverged))
    return "\n\n".join(part for part in parts if part) + "\n"


def _against_epsilon(story: Story) -> list[str]:
    if not (levels := levels_of(story.settings)):
        return []
    measured = f"{story.main.measure} after {steps(story.main.primary_step)} against ε"
    titles = [f"{GROUP_NAMES[group].capitalize()}, {measured}:" for group in story.main.groups]
    tables = [markdown_table(privacy_table(levels, group)) for group in story.main.groups]
    return [part for both in zip(titles, tables, strict=True) for part in both]


def _under_attack(story: Story, heading: str) -> Iterator[str]:
    yield NOTE
    for title, table in robustness_tables(story):
        yield from (f"{heading} {title}", markdown_table(table))


def _in_settings(story: Story, heading: str) -> Iterator[str]:
    for graded in story.settings:
        comparison = graded.comparison
        yield f"{heading} Setting `{graded.name}`" if graded.name else ""
        yield from spent_lines(comparison)
        for group in comparison.groups:
            yield from verdict_on(comparison, group)
            if graded is story.settings[0] and group == comparison.groups[0]:
                yield " ".join(glossary(comparison.labels.values(), is_single=story.is_single))
                yield ONE_RUN if story.is_single else how_sure(comparison)
            if len(comparison.runs) > 1:
                yield from (f"{GROUP_NAMES[group].capitalize()}:", markdown_table(standing_table(comparison, group)))
            yield from _all_metrics(comparison, group)
            yield from _further(comparison, group)
            if len(exact_methods(comparison)) > 1:
                yield from ("Trained for ν steps, tested after s:", markdown_table(matrix_table(comparison, group)))
        if other := baseline_of(comparison):
            yield f"Against {comparison.labels[other]}, s = {comparison.primary_step}:"
            yield markdown_table(differences_table(comparison, other))
        if comparison.targets():
            yield from ("To target (median over seeds, range):", markdown_table(target_table(comparison)))


def _further(comparison: Comparison, group: Group) -> Iterator[str]:
    """Yield what else a group is judged by: few examples, who is served worst, and who is worse off."""
    if shots := shots_table(comparison, group):
        yield from ("Few examples:", markdown_table(shots))
    if everybody := global_table(comparison, group):
        yield from ("What fine-tuning gives on one's own data and costs on everybody's:", markdown_table(everybody))
    yield from ("The worst served:", markdown_table(worst_table(comparison, group)))
    if worse := worse_off_table(comparison, group):
        yield from ("Clients worse off (share; ties are not worse):", markdown_table(worse))


def _all_metrics(comparison: Comparison, group: Group) -> list[str]:
    if not comparison.first.metrics and not comparison.has_baselines:
        return []
    return ["All metrics:", markdown_table(metrics_table(comparison, group))]


def markdown_table(table: TextTable) -> str:
    """Return a table in Markdown; rows that stand out are bold."""
    lines = [table.header, ["---"] * len(table.header)]
    for index, row in enumerate(table.rows):
        strong = index in table.strong
        lines.append(
            [
                f"**{cell}**" if cell and (strong or table.shades.get((index, column)) == 1) else cell
                for column, cell in enumerate(row)
            ]
        )
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _findings(story: Story) -> str:
    rows = [
        [finding.name, finding.statement, f"**{finding.verdict}**", _evidence(finding, story)]
        for finding in story.findings
    ]
    return markdown_table(TextTable(["", "statement", "verdict", "evidence: positive speaks for it"], rows))


def _evidence(finding: Finding, story: Story) -> str:
    """Return the comparisons behind a finding, one below the other in a cell."""
    lines = [f"{name}: {difference}" for name, difference, _ in evidence_table(finding, story.main).rows]
    return "<br>".join([*lines, *([finding.note] if finding.note else [])])


def _provenance(story: Story) -> str:
    record = story.record
    if "command" not in record:
        return f"Seeds {', '.join(map(str, story.main.seeds))}."
    return (
        f"`{record['command']}`; {len(story.main.seeds)} seeds; {record['processor']}, one thread; final runs "
        f"{duration(record['final_run_seconds'])} in all; torch {record['torch']}, flwr {record['flwr']}."
    )
