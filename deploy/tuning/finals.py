"""The final runs: the best of several ν over seeds, each judged by clients that neither it nor the search has seen.

Every seed holds out another fold, the same for all finalists; differences to FedAvg + fine-tuning are paired by seed
and corrected by Holm for the number of finalists, so that choosing among them does not make one look better.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.deploy.experiments.statistics import MIN_SEEDS, Corrected, Differences, Grain, holm
from nufed.deploy.experiments.wording import difference, number
from nufed.deploy.tuning.judged_run import Judged, Runs
from nufed.deploy.tuning.search import Trial, best_of
from nufed.deploy.tuning.space import name_of

_FIRST_SEED = 1_000_000
"""Added to the run's seed, so that no final run has the seed of the search or of what is run afterwards."""

_AHEAD, _BEHIND, _EQUAL = "is ahead of", "is behind", "is not distinguishable from"


@dataclass(frozen=True)
class Finalist:
    """The best trial of one ν, over the final seeds.

    Attributes:
        trial: which step sizes.
        judged: seed number -> what the clients held out with it say.
    """

    trial: Trial
    judged: Mapping[int, Judged]

    @property
    def name(self) -> str:
        """Return what a reader knows it by."""
        return name_of(self.trial.nu)

    @property
    def mean(self) -> float:
        """Return the mean over seeds; NaN if one diverged."""
        return math.fsum(each.value for each in self.judged.values()) / len(self.judged)

    @property
    def score(self) -> float:
        """Return the mean score; -inf if a seed diverged."""
        return math.fsum(each.score for each in self.judged.values()) / len(self.judged)


@dataclass(frozen=True)
class Verdict:
    """What the final runs say.

    Attributes:
        chosen: the finalist with the best mean.
        finalists: all, FedAvg + fine-tuning first.
        leads: ν -> its paired difference to FedAvg + fine-tuning, positive where it is better.
        measure: the primary metric.
    """

    chosen: Finalist
    finalists: Sequence[Finalist]
    leads: Mapping[int, Corrected]
    measure: str


def finalists_of(trials: Mapping[int, Sequence[Trial]], number: int) -> list[Trial]:
    """Return FedAvg + fine-tuning and the best of other ν, each at its best trial.

    Raises:
        RunError: FedAvg + fine-tuning, or all others, diverged wherever they were tried.
    """
    best = {nu: best_of(found) for nu, found in trials.items()}
    others = sorted((trial for nu, trial in best.items() if nu and trial), key=lambda trial: trial.rank, reverse=True)
    reference = best[0]
    if reference is None or not others:
        who = "FedAvg + fine-tuning" if reference is None else "all ν > 0"
        raise RunError(
            f"Expected trials to train, but {who} diverged wherever they were tried. Give smaller step sizes: "
            "--alpha LOW:HIGH, --beta LOW:HIGH."
        )
    return [reference, *others[: number - 1]]


def final_config(base: RunConfig, trial: Trial, seed_number: int) -> RunConfig:
    """Return the options of a final run."""
    return trial.config.updated({"seed": (base.seed + _FIRST_SEED + seed_number) % 2**62})


def decide(base: RunConfig, trials: Sequence[Trial], num_seeds: int, runs: Runs, say: Callable[[str], None]) -> Verdict:
    """Run the finalists over seeds and compare them.

    Raises:
        NufedError: a run cannot start, or all finalists diverged.
        KeyboardInterrupt: runs that are done stay.
    """
    judged: dict[int, dict[int, Judged]] = {trial.nu: {} for trial in trials}
    for seed in range(num_seeds):
        fold = runs.clients.fold_of(seed)
        for trial in trials:
            config = final_config(base, trial, seed)
            found = runs.judge(config, base.federation.num_rounds, fold)
            runs.forget(config, fold)
            judged[trial.nu][seed] = found
            say(f"final runs, seed {seed + 1} of {num_seeds}: {name_of(trial.nu)} {number(found.value, found.measure)}")
    finalists = [Finalist(trial, judged[trial.nu]) for trial in trials]
    chosen = max(finalists, key=lambda finalist: finalist.score)
    if not math.isfinite(chosen.score):
        raise RunError(
            "Expected final runs to train, but every finalist diverged with some seed. Give smaller step sizes: "
            "--alpha LOW:HIGH, --beta LOW:HIGH."
        )
    leads = holm({str(each.trial.nu): _lead(each, finalists[0]) for each in finalists[1:]})
    measure = next(iter(chosen.judged.values())).measure
    return Verdict(chosen, finalists, {int(nu): lead for nu, lead in leads.items()}, measure)


def _lead(one: Finalist, other: Finalist) -> Differences:
    """Return seed -> mean over the held-out clients of how much better one is."""
    values, example = {}, 0.0
    for seed, found in one.judged.items():
        theirs = other.judged[seed]
        if not (math.isfinite(found.value) and math.isfinite(theirs.value)):
            values[seed] = math.nan
            continue
        both = [name for name, value in found.by_client.items() if math.isfinite(value - theirs.by_client[name])]
        gaps = [found.sign * (found.by_client[name] - theirs.by_client[name]) for name in both]
        values[seed] = math.fsum(gaps) / len(gaps) if gaps else math.nan
        example = max(example, found.example)
    return Differences(values, Grain(example))


def sentence(verdict: Verdict) -> str:
    """Return which ν are ahead of FedAvg + fine-tuning, behind it, or not distinguishable from it, with intervals."""
    parts: dict[str, list[tuple[int, str]]] = {_AHEAD: [], _BEHIND: [], _EQUAL: []}
    unsure = []
    for nu, lead in verdict.leads.items():
        interval = lead.interval
        if not math.isfinite(interval.mean):
            unsure.append(f"{name_of(nu)} has no interval against FedAvg + fine-tuning, as {_diverged(verdict, nu)}")
            continue
        kind = (
            "is ahead of" if interval.low > 0 else "is behind" if interval.high < 0 else "is not distinguishable from"
        )
        parts[kind].append((nu, difference(interval, verdict.measure)))
    said = [f"{name_of(nu)} {kind} FedAvg + fine-tuning ({gap})" for kind, each in parts.items() for nu, gap in each]
    num = len(verdict.finalists[0].judged)
    few = f"; {MIN_SEEDS} seeds are needed for an interval, and there are {num}" if num < MIN_SEEDS else ""
    return f"{'; '.join([*said, *unsure])}{few}. Chosen: {verdict.chosen.name}, {_why(verdict)}."


def _diverged(verdict: Verdict, nu: int) -> str:
    """Return which of two finalists diverged, and with how many seeds."""
    parts = []
    for finalist in verdict.finalists:
        num = sum(not math.isfinite(each.value) for each in finalist.judged.values())
        if num and finalist.trial.nu in (0, nu):
            parts.append(f"{finalist.name} diverged with {num} of {len(finalist.judged)} seeds")
    return " and ".join(parts) or "no client has a value under both"


def _why(verdict: Verdict) -> str:
    mean = number(verdict.chosen.mean, verdict.measure)
    lead = verdict.leads.get(verdict.chosen.trial.nu)
    if lead is None:
        return f"which has the best mean on clients held out of training, {mean}"
    if not math.isfinite(lead.interval.mean):
        return f"which diverged with no seed, with {mean} on clients held out of training"
    if lead.interval.low > 0:
        return f"with {mean} on clients held out of training"
    return f"which has the best mean on clients held out of training, {mean}, by no more than chance may give"
