"""What a search leaves for its user: best.toml, trials.csv, result.json and a page."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from nufed.common.config import RunConfig, Scalar
from nufed.common.durable_file import write_json, write_text
from nufed.common.json_text import json_ready
from nufed.common.metric_looks import look_of
from nufed.deploy.experiments.report_page import Section, contents, section_html, table_html
from nufed.deploy.experiments.report_style import PAGE, STYLE
from nufed.deploy.experiments.report_tables import TextTable
from nufed.deploy.experiments.wording import difference, judgement, number
from nufed.deploy.tuning.finals import Finalist, sentence
from nufed.deploy.tuning.search import Trial, best_of, shown
from nufed.deploy.tuning.space import ALPHA, BETA, name_of
from nufed.deploy.tuning.tuner import Tuned
from nufed.server.progress_lines import duration

BEST, TRIALS, RESULT, REPORT = "best.toml", "trials.csv", "result.json", "report.html"
FEW_EXAMPLES = 200
"""Examples below which it is said that a run is judged on few."""
_COLUMNS = ("phase", "num_inner_steps", "trial", "seed", "options", "rounds", "state", "measure", "value", "loss")


def write_result(found: Tuned, out: Path) -> None:
    """Write all four files.

    Raises:
        RunError: the system refuses.
    """
    write_text(out / BEST, best_toml(found))
    write_text(out / TRIALS, trials_csv(found))
    write_json(out / RESULT, to_json(found))
    write_text(out / REPORT, page(found))


def best_toml(found: Tuned) -> str:
    """Return the chosen options as TOML that `nufed simulate --config` reads: what was given, and what was chosen."""
    head = [f"# {line}" for line in (sentence(found.verdict), *cost_lines(found))]
    return "\n".join([*head, "", toml_of(found.config)])


def toml_of(config: RunConfig) -> str:
    """Return the options of a run that were given, as TOML that reads back as the same options."""
    tables: dict[str, list[str]] = {}
    for key, value in config.given().items():
        section, _, name = key.rpartition(".")
        tables.setdefault(section, []).append(f"{name} = {_toml(value)}")
    parts = ["\n".join(tables.pop("", []))]
    parts += [f"[{section}]\n" + "\n".join(lines) for section, lines in tables.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _toml(value: Scalar) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def trials_csv(found: Tuned) -> str:
    """Return one line for each trial and each final run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for nu, trials in found.trials.items():
        for trial in trials:
            seed, judged = trial.config.seed, trial.judged
            row = ["search", nu, trial.number, seed, shown(trial.options), trial.rounds, trial.state]
            writer.writerow([*row, judged.measure, judged.value, judged.loss])
    for finalist in found.verdict.finalists:
        for seed, judged in finalist.judged.items():
            trial = finalist.trial
            row = ["final", trial.nu, trial.number, seed, shown(trial.options), found.config.federation.num_rounds, ""]
            writer.writerow([*row, judged.measure, judged.value, judged.loss])
    return text.getvalue()


def to_json(found: Tuned) -> dict[str, Any]:
    """Return the result for programs."""
    verdict = found.verdict
    leads = {
        str(nu): {"mean": lead.interval.mean, "low": lead.interval.low, "high": lead.interval.high}
        for nu, lead in verdict.leads.items()
    }
    means = {str(each.trial.nu): each.mean for each in verdict.finalists}
    chosen = {"num_inner_steps": verdict.chosen.trial.nu, **verdict.chosen.trial.options}
    record = {"sentence": sentence(verdict), "measure": verdict.measure, "chosen": chosen, "means": means}
    plain: dict[str, Any] = json_ready({**record, "leads_over_fedavg": leads, "cost": asdict(found.cost)})
    return plain


def cost_lines(found: Tuned) -> list[str]:
    """Return what the search has cost, and what its numbers are of."""
    cost, (held, total), length = found.cost, found.folds, found.config.federation.num_rounds
    spent = f"{cost.runs:.1f} runs of {length} rounds, {cost.gradients:.3g} gradient equivalents"
    who = f"{held} of {total} participating clients at a time, held out of that run's training as if they were new"
    return [
        f"Cost: {spent}, {duration(cost.seconds)}; the full grid: {cost.grid} runs, {cost.grid_gradients:.3g}.",
        f"Judged on validation examples of {who}, after {found.config.evaluation.primary_step} fine-tuning steps.",
    ]


def doubt_lines(found: Tuned) -> list[str]:
    """Return that a run is judged on few examples, where that is so: one of them then moves its number a lot."""
    least = min(each.num_examples for each in found.verdict.chosen.judged.values())
    if least >= FEW_EXAMPLES or not look_of(found.verdict.measure).is_share:
        return []
    error = f"the standard error of its number is up to {50 / least**0.5:.0f} points"
    advice = "raise data.validation-fraction or --held-out to choose more surely"
    return [f"A run is judged on as few as {least} examples, so that {error}: {advice}."]


def remarks(found: Tuned) -> list[str]:
    """Return what stands below the sentence: the cost, what was judged, and what is in doubt."""
    return [*cost_lines(found), *doubt_lines(found), *edge_lines(found)]


def edge_lines(found: Tuned) -> list[str]:
    """Return where a best step size lies at the end of its range, beyond which a better one may lie."""
    lines = []
    ranges = {ALPHA: ("α", "--alpha", found.space.inner_lr), BETA: ("β", "--beta", found.space.local_lr)}
    for finalist in found.verdict.finalists:
        for key, (symbol, flag, span) in ranges.items():
            value = finalist.trial.options.get(key)
            if value is not None and span.is_at_edge(float(value)):
                lines.append(
                    f"The best {symbol} of {finalist.name}, {float(value):g}, lies at the end of its range: a better "
                    f"one may lie beyond. Widen {flag}."
                )
    return lines


def page(found: Tuned) -> str:
    """Return the page: the sentence, the finalists, all trials, and how it was done."""
    title = f"Tuned: {found.config.name}"
    sections = list(_sections(found))
    lead = f"<p class=lead>{escape(sentence(found.verdict))}</p>"
    notes = "".join(f"<p class=note>{escape(line)}</p>" for line in remarks(found))
    head = f"<header><h1>{escape(title)}</h1></header><section class=verdict>{lead}{notes}</section>"
    body = [head, contents(sections), *map(section_html, sections)]
    return Template(PAGE).substitute(title=escape(title), style=STYLE, body="\n".join(body))


def _sections(found: Tuned) -> Iterator[Section]:
    seeds = len(found.verdict.chosen.judged)
    note = (
        f"Each with {seeds} seeds; every seed holds out other clients, the same for all finalists, and none that the "
        "search has looked at. Differences are paired by seed; [ ]: 95 % intervals over seeds, corrected by Holm for "
        "the number of finalists. Positive is better."
    )
    yield Section("Final runs", table_html(_finalists(found), "Final runs"), note)
    yield Section(
        "Best of each ν",
        table_html(_bests(found), "Best of each ν"),
        "In the search, on the clients that it held out: one seed, and the best of several, so too good by chance.",
    )
    for nu, trials in found.trials.items():
        yield Section(f"Trials of {name_of(nu)}", table_html(_trials(trials), f"Trials of {name_of(nu)}"))
    rows = [[key, str(value)] for key, value in found.config.flat().items() if value != RunConfig().flat()[key]]
    yield Section(
        "Options", table_html(TextTable(["option", "value"], rows), "Options"), "Those that are not defaults."
    )


def _finalists(found: Tuned) -> TextTable:
    verdict, rows = found.verdict, []
    for finalist in verdict.finalists:
        lead = verdict.leads.get(finalist.trial.nu)
        against = ["reference", ""] if lead is None else [difference(lead.interval, verdict.measure), judgement(lead)]
        rows.append([finalist.name, shown(finalist.trial.options), number(finalist.mean, verdict.measure), *against])
    chosen: list[Finalist] = list(verdict.finalists)
    header = ["", "options", verdict.measure, "against FedAvg + fine-tuning", "verdict"]
    return TextTable(header, rows, frozenset({chosen.index(verdict.chosen)}))


def _bests(found: Tuned) -> TextTable:
    rows = []
    for nu, trials in found.trials.items():
        best = best_of(trials)
        counts = [str(sum(trial.state == state for trial in trials)) for state in ("complete", "pruned", "diverged")]
        what = ["all diverged", ""] if best is None else [shown(best.options), _value(best)]
        rows.append([name_of(nu), *what, *counts])
    return TextTable(["", "options", found.verdict.measure, "complete", "pruned", "diverged"], rows)


def _trials(trials: Sequence[Trial]) -> TextTable:
    rows = [
        [str(trial.number), shown(trial.options), str(trial.rounds), trial.state, _value(trial)] for trial in trials
    ]
    best = best_of(trials)
    strong = frozenset() if best is None else frozenset({list(trials).index(best)})
    return TextTable(["trial", "options", "rounds", "state", "value"], rows, strong)


def _value(trial: Trial) -> str:
    text, measure = number(trial.judged.value, trial.judged.measure), trial.judged.measure
    return text if look_of(measure).better == "higher" else f"{text} (less is better)"
