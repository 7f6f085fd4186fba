"""What a report tells, about an experiment or about a single run: comparisons, findings, and the verdict in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.common.examples import Group
from nufed.deploy.experiments.cells import CELLS
from nufed.deploy.experiments.comparison import Comparison, compare, exact_methods
from nufed.deploy.experiments.conduct import RECORD, Experiment, read_experiment
from nufed.deploy.experiments.finished import FinishedRun, read_run
from nufed.deploy.experiments.hypotheses import Attacked, Finding, Graded, judge
from nufed.deploy.experiments.side_by_side import data_words, method_words, side_by_side
from nufed.deploy.experiments.statistics import MIN_SEEDS, Corrected, holm
from nufed.deploy.experiments.tuning import Choice
from nufed.deploy.experiments.wording import difference, estimate, judgement, number, p_value, steps
from nufed.server.resuming import CONFIG

GROUP_NAMES: dict[Group, str] = {"new": "new clients", "participating": "participating clients"}


@dataclass(frozen=True)
class Winner:
    """Who is best for one group of clients at s*.

    Attributes:
        group: the clients.
        method: the best mean over seeds.
        against: every other method -> how much better the winner is, Holm-corrected for their number.
        runner_up: the second best; empty if there is one method.
    """

    group: Group
    method: str
    against: Mapping[str, Corrected]
    runner_up: str


@dataclass(frozen=True)
class Story:
    """A report's content.

    Attributes:
        title: one line.
        about: what is compared; empty for a single run.
        settings: comparisons; the last one is the main one.
        choices: what was tuned; empty for a single run.
        diverged: why, for the final runs that diverged or trained nothing.
        record: how it was done.
    """

    title: str
    about: str
    settings: Sequence[Graded]
    choices: Mapping[str, Choice]
    diverged: Mapping[str, str]
    record: Mapping[str, Any]

    @property
    def main(self) -> Comparison:
        """Return the comparison that the verdict is about."""
        return self.settings[-1].comparison

    @property
    def is_single(self) -> bool:
        """Return whether this is about one run."""
        return len(self.settings) == 1 and len(self.main.runs) == 1 and len(self.main.seeds) == 1

    @cached_property
    def findings(self) -> list[Finding]:
        """Return the verdicts on H1 to H5; none for a single method, or where rules are compared under attack."""
        return judge(self.settings) if len(self.main.runs) > 1 and not self.is_attacked else []

    @cached_property
    def is_attacked(self) -> bool:
        """Whether there are settings with attackers."""
        return any(graded.attacked for graded in self.settings)

    def configs(self) -> dict[str, RunConfig]:
        """Return the configuration of every method of the main setting."""
        return {name: next(iter(runs.values())).config for name, runs in self.main.runs.items()}

    def verdict_lines(self) -> list[str]:
        """Return the verdict on the main setting, a sentence or two for each group of clients."""
        return [line for group in self.main.groups for line in verdict_on(self.main, group)]

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        comparison, step = self.main, self.main.primary_step
        return {
            "primary_step": step,
            "measure": comparison.measure,
            "seeds": comparison.seeds,
            "verdict": self.verdict_lines(),
            "methods": {
                name: {group: vars(comparison.mean(name, group, step)) for group in comparison.groups}
                for name in comparison.runs
            },
            "findings": {finding.name: finding.verdict for finding in self.findings},
            "diverged": dict(self.diverged),
        }


def read_story(folder: Path) -> Story:
    """Return the story of an experiment's folder, or of a run's.

    Raises:
        RunError: it is neither.
    """
    if (folder / RECORD).is_file():
        return story_of(read_experiment(folder))
    if (folder / CELLS).is_dir():
        raise RunError(
            f"Expected an experiment that has run to its end in {folder}, but runs are left. Give `nufed experiment` "
            "again; it goes on where it stopped."
        )
    if not (folder / CONFIG).is_file():
        what = "holds neither" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise RunError(
            f"Expected the folder of an experiment or of a run at {folder}, but it {what}. Give one that `nufed "
            "experiment` or a run has left."
        )
    return _story_of_run(read_run(folder))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's, and no experiment's."""
    return (folder / CONFIG).is_file() and not (folder / RECORD).is_file() and not (folder / CELLS).is_dir()


def story_of_runs(folders: Sequence[Path]) -> Story:
    """Return the story of several runs side by side: equal options but for the seed are one method.

    Raises:
        RunError: one is no folder of a run, or they cannot be compared.
    """
    sides = side_by_side([read_run(folder) for folder in folders])
    fedavg = next((name for name, run in sides.items() if run.config.method.num_inner_steps == 0), "")
    return Story(
        f"{len(sides.runs)} runs side by side, on {data_words(sides.runs[0].config)}",
        "Runs whose options differ in nothing but the seed are one method; differences are paired by seed.",
        [Graded("", 0.0, compare(sides.runs, sides.labels, reference=fedavg))],
        {},
        {},
        {"folders": ", ".join(folder.name for folder in folders)},
    )


def story_of(experiment: Experiment) -> Story:
    """Return the story of an experiment; settings of which no run has results are left out."""
    suite = experiment.suite
    labels = {method.name: method.label or method.name for method in suite.methods}
    roles = {"reference": suite.reference, "baseline": suite.baseline, "target": suite.target}
    settings = []
    for setting in suite.settings:
        runs = [run for run in experiment.runs if run.setting == setting.name]
        if runs:
            smoothness = setting.smoothness or suite.smoothness
            attacked = Attacked(setting.attack, setting.attackers, setting.honest) if setting.attack else None
            comparison = compare(runs, labels, **roles)
            settings.append(Graded(setting.name, setting.strength, comparison, smoothness, attacked))
    return Story(suite.title, suite.about, settings, experiment.choices, experiment.diverged, experiment.record)


def winner(comparison: Comparison, group: Group) -> Winner:
    """Return the best method for a group at s*, and how it stands against each other one."""
    step = comparison.primary_step
    best = comparison.best(group, step)
    against = comparison.against(best, group, step)
    turned = {name: corrected.turned() for name, corrected in against.items()}
    finite = [name for name in turned if turned[name].interval.mean == turned[name].interval.mean]
    runner_up = min(finite, key=lambda name: turned[name].interval.mean, default="")
    return Winner(group, best, turned, runner_up)


def verdict_on(comparison: Comparison, group: Group) -> list[str]:
    """Return who won for a group, by how much and whether that is significant, and what ν > 1 gains."""
    step, measure = comparison.primary_step, comparison.measure
    best = winner(comparison, group)
    own = comparison.mean(best.method, group, step)
    where = f"{GROUP_NAMES[group].capitalize()} after {steps(step)}"
    if not best.against:
        before = comparison.mean(best.method, group, 0)
        return [f"{where}: {measure} {number(own.mean, measure)}, from {number(before.mean, measure)} before."]
    label = comparison.labels
    lines = [f"{where}: {_standing(comparison, best, estimate(own, measure))}"]
    for name in dict.fromkeys([best.runner_up, comparison.reference]):
        if name in best.against:
            corrected = best.against[name]
            proof = ", ".join(part for part in (judgement(corrected), p_value(corrected.p_adjusted)) if part)
            lines.append(
                f"{label[best.method]} against {label[name]}: {difference(corrected.interval, measure)}, {proof}."
            )
    said = {name for name in (best.runner_up, comparison.reference) if name in best.against}
    return lines + _on_nu(comparison, group, {(best.method, name) for name in said})


def _standing(comparison: Comparison, best: Winner, value: str) -> str:
    """Return how the best mean stands against all others; only what is shown to be better reads as a win."""
    measure, label, others = comparison.measure, comparison.labels, len(best.against)
    extreme = "highest" if comparison.sign > 0 else "lowest"
    has = f"{label[best.method]} has the {extreme} mean {measure}, {value}"
    beaten = [name for name, each in best.against.items() if judgement(each) == "better"]
    most = max(each.interval.num for each in best.against.values())
    if most < MIN_SEEDS:
        return f"no verdict, for which {MIN_SEEDS} seeds are needed. {has}."
    if not beaten:
        which = "the other method" if others == 1 else f"any of the {others} other methods"
        return f"no winner is shown. {has}, but is not shown to be better than {which}."
    what = f"{label[best.method]} has the best {measure}, {value}, and is shown to be better than"
    if len(beaten) == others:
        return f"{what} {'the other method' if others == 1 else f'all {others} other methods'}."
    rest = ", ".join(label[name] for name in best.against if name not in beaten)
    return f"{what} {len(beaten)} of the {others} other methods, but not than {rest}."


def _on_nu(comparison: Comparison, group: Group, said: set[tuple[str, str]]) -> list[str]:
    """Return how the best exact ν > 1 stands against ν = 1, Holm-corrected over these ν; nothing if that was said."""
    methods, step, measure = exact_methods(comparison), comparison.primary_step, comparison.measure
    larger = {nu: name for nu, name in methods.items() if nu > 1}
    if 1 not in methods or not larger:
        return []
    compared = {name: comparison.differences(name, methods[1], group, step) for name in larger.values()}
    against = holm({name: values for name, values in compared.items() if values})
    if not against:
        return []
    best = max(against, key=lambda name: against[name].interval.mean)
    if (best, methods[1]) in said:
        return []
    text = difference(against[best].interval, measure)
    names = f"{comparison.labels[best]} against {comparison.labels[methods[1]]}, both exact"
    return [f"{names}: {text}, {judgement(against[best])}."]


def _story_of_run(run: FinishedRun) -> Story:
    record = {"folder": run.folder.name, "status": run.summary["status"], "seconds": run.summary["seconds"]}
    comparison = compare([run], {}, target=run.config.evaluation.target(run.measure))
    title = f"Run {run.config.name}: {method_words(run.config)}, on {data_words(run.config)}"
    return Story(title, "", [Graded("", 0.0, comparison)], {}, {}, record)
