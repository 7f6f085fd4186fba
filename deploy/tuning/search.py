"""The search over step sizes: for each ν a study of its own with an equal budget, by Optuna.

Every ν has as many rounds to spend, so that none is better tuned than another. Within one, Optuna's TPE proposes α and
β and successive halving prunes: a trial is judged after a ninth and a third of the rounds, and goes on only if it is
among the better third there. Proposals follow from the seed and from what was found, so that a search that was cut
short goes on as if it had not been.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nufed.common.config import RunConfig, Scalar
from nufed.common.config.method import rounded
from nufed.common.durable_file import writing
from nufed.common.errors import ConfigError, RunError
from nufed.common.rng import derive_seed
from nufed.deploy.tuning.judged_run import Judged, Runs
from nufed.deploy.tuning.space import ALPHA, BETA, INNER, Space, name_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

JOURNAL = "trials.journal"
REDUCTION = 3
SEARCH_FOLD = 0
_NUM_STARTUP = 6
_MOST_TRIALS = 1000
_OPTIONS, _ROUNDS = "options", "rounds"


@dataclass(frozen=True)
class Trial:
    """One proposal and how far it came.

    Attributes:
        nu: ν.
        number: of the trial among those of its ν.
        config: of its run, with all rounds.
        options: what was proposed.
        rounds: how many were run.
        state: `complete`, `pruned` or `diverged`.
        judged: what held-out clients said last.
        seconds: of wall time, all rungs together.
    """

    nu: int
    number: int
    config: RunConfig
    options: Mapping[str, Scalar]
    rounds: int
    state: str
    judged: Judged
    seconds: float

    @property
    def rank(self) -> tuple[int, float, float]:
        """Return what trials are ordered by: those that came further first, and then by what was found."""
        return (self.rounds if self.state != "diverged" else 0, *self.judged.rank)


def rungs_of(num_rounds: int) -> tuple[int, ...]:
    """Return after how many rounds a trial is judged: a ninth, a third and all of them."""
    return tuple(sorted({max(1, math.ceil(num_rounds / REDUCTION**power)) for power in (2, 1, 0)}))


@dataclass(frozen=True)
class Search:
    """A search's fixed parts.

    Attributes:
        base: options of the run that is tuned for.
        space: what is searched.
        runs: carries out the runs.
        share: rounds that each ν may spend.
        say: told of every trial in one line.
    """

    base: RunConfig
    space: Space
    runs: Runs
    share: int
    say: Callable[[str], None]

    def trials(self) -> dict[int, list[Trial]]:
        """Return the trials of every ν; what the search's folder holds already is not run again.

        Raises:
            NufedError: Optuna is absent, or a run cannot start.
            KeyboardInterrupt: trials that are done stay, and the one that was cut short goes on next time.
        """
        found: dict[int, list[Trial]] = {}
        with writing(self.runs.out):
            self.runs.out.mkdir(parents=True, exist_ok=True)
        for nu in self.space.nus:
            before = [best_of(trials) for trials in found.values()]
            found[nu] = list(self._trials_of(nu, [trial for trial in before if trial]))
        return found

    def _trials_of(self, nu: int, before: Sequence[Trial]) -> Iterator[Trial]:
        study = open_study(self.runs.out / JOURNAL, f"nu-{nu}")
        starts, spent, trials = self._starts(nu, before), 0, []
        for number in range(_MOST_TRIALS):
            if spent + self._rungs[0] > self.share:
                return
            trial = self._told(study, nu, number) or self._run(study, nu, number, starts, self.share - spent)
            spent += trial.rounds
            trials.append(trial)
            yield trial

    @property
    def _rungs(self) -> tuple[int, ...]:
        return rungs_of(self.base.federation.num_rounds)

    def _starts(self, nu: int, before: Sequence[Trial]) -> list[dict[str, float]]:
        """Return step sizes to begin with: those of the run, the ranges' middles, and the best of the ν before."""
        ranges, method = self.space.ranges(self.base, nu), self.base.method
        points = [{ALPHA: method.inner_lr, BETA: method.local_lr}]
        points.append({ALPHA: self.space.inner_lr.middle, BETA: self.space.local_lr.middle})
        points += [{key: float(trial.options.get(key, points[0][key])) for key in points[0]} for trial in before[-1:]]
        return [{key: ranges[key].inside(value) for key, value in point.items() if key in ranges} for point in points]

    def _told(self, study: "Study", nu: int, number: int) -> Trial | None:
        """Return a trial that is over, as the study keeps it."""
        over = _over(study)
        if number >= len(over):
            return None
        kept = over[number]
        options, rounds = kept.user_attrs[_OPTIONS], int(kept.user_attrs[_ROUNDS])
        config = self._config(nu, options)
        return self._trial(nu, number, config, options, [each for each in self._rungs if each <= rounds])

    def _run(self, study: "Study", nu: int, number: int, starts: Sequence[Mapping[str, float]], left: int) -> Trial:
        with _quiet():
            study.sampler = _sampler(self.base.seed, nu, number, starts)
            asked = study.ask()
            options = self._proposed(asked, nu)
        config, over, state = self._config(nu, options), [], "complete"
        for step, rounds in enumerate(self._rungs):
            found = self.runs.judge(config, rounds, SEARCH_FOLD)
            over.append(rounds)
            if not math.isfinite(found.score):
                state = "diverged"
                break
            asked.report(found.score, REDUCTION**step)
            is_last = step == len(self._rungs) - 1
            if not is_last and (asked.should_prune() or self._rungs[step + 1] > left):
                state = "pruned"
                break
        asked.set_user_attr(_OPTIONS, dict(options))
        asked.set_user_attr(_ROUNDS, over[-1])
        _tell(study, asked, found.score if state == "complete" else None)
        self.runs.forget(config, SEARCH_FOLD)
        trial = self._trial(nu, number, config, options, over)
        self.say(line_of(trial, self.base.federation.num_rounds))
        return trial

    def _proposed(self, asked: Any, nu: int) -> dict[str, Scalar]:
        options: dict[str, Scalar] = {
            key: rounded(asked.suggest_float(key, span.low, span.high, log=True))
            for key, span in self.space.ranges(self.base, nu).items()
        }
        for key, values in self.space.choices(nu).items():
            options[key] = asked.suggest_categorical(key, list(values))
        return options

    def _config(self, nu: int, options: Mapping[str, Scalar]) -> RunConfig:
        return self.base.updated({INNER: nu, **options})

    def _trial(
        self, nu: int, number: int, config: RunConfig, options: Mapping[str, Scalar], over: Sequence[int]
    ) -> Trial:
        judged = [self.runs.judge(config, rounds, SEARCH_FOLD) for rounds in over]
        last, is_whole = judged[-1], over[-1] == self.base.federation.num_rounds
        state = "diverged" if not math.isfinite(last.score) else "complete" if is_whole else "pruned"
        seconds = math.fsum(each.seconds for each in judged)
        return Trial(nu, number, config, options, over[-1], state, last, seconds)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the best of the trials that came furthest; None if all diverged."""
    stayed = [trial for trial in trials if trial.state != "diverged"]
    return max(stayed, key=lambda trial: trial.rank) if stayed else None


def line_of(trial: Trial, num_rounds: int) -> str:
    """Return one line about a trial."""
    from nufed.deploy.experiments.wording import number

    sizes, found = shown(trial.options), number(trial.judged.value, trial.judged.measure)
    ending = ", pruned" if trial.state == "pruned" else ""
    came = f"{found} after {trial.rounds} of {num_rounds} rounds{ending}"
    return f"{name_of(trial.nu)}, trial {trial.number}, {sizes}: {came}"


def shown(options: Mapping[str, Scalar]) -> str:
    """Return options of a trial as `α = 0.1, β = 0.2`."""
    return ", ".join(f"{_SYMBOLS.get(key, key)} = {_shown(value)}" for key, value in options.items())


_SYMBOLS = {ALPHA: "α", BETA: "β", "method.estimator": "estimator", "method.num-local-steps": "τ"}


def _shown(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_optuna() -> None:
    """Refuse to begin without Optuna.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Expected Optuna, which proposes what to try, but it is not installed. Install it: "
            'pip install "nufed[tune]".'
        ) from error


def open_study(path: Path, name: str) -> "Study":
    """Return a study kept in a file; what a killed process left half-done in it is left out.

    Raises:
        RunError: the file is no such journal.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _mend(path)
    try:
        with _quiet(), writing(path):
            study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=halving(),
            )
            for begun in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                study.tell(begun.number, state=TrialState.FAIL)
    except (ValueError, KeyError) as error:
        raise RunError(f"Expected the trials of a search in {path}, but {error}. Delete it to begin anew.") from error
    return study


def halving() -> "BasePruner":
    """Return the rule of successive halving, among trials that are over and the one that is asked about.

    Optuna's own counts what a killed process began as well, so that going on would prune otherwise.
    """
    from optuna.pruners import BasePruner
    from optuna.trial import TrialState

    class Halving(BasePruner):
        """Prunes a trial whose last value is not among the better third of its rung, or the best there."""

        def prune(self, study: "Study", trial: "FrozenTrial") -> bool:
            """Return whether the trial ends here."""
            step = trial.last_step
            if step is None:
                return False
            over = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
            rung = sorted([each.intermediate_values[step] for each in over if step in each.intermediate_values])
            better = sum(value > trial.intermediate_values[step] for value in rung)
            return better >= max(1, (len(rung) + 1) // REDUCTION)

    return Halving()


def _mend(path: Path) -> None:
    """Cut off a line that a killed process did not finish, which Optuna would not read, and take away its lock.

    The search's folder is locked, so that nobody else has the journal; Optuna would wait half a minute for a dead one.
    """
    for left in path.parent.glob(f"{path.name}.lock*"):
        left.unlink(missing_ok=True)
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def _over(study: "Study") -> list["FrozenTrial"]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])


def _tell(study: "Study", asked: Any, score: float | None) -> None:
    from optuna.trial import TrialState

    if score is None:
        study.tell(asked, state=TrialState.PRUNED)
    else:
        study.tell(asked, score)


def _sampler(seed: int, nu: int, number: int, starts: Sequence[Mapping[str, float]]) -> Any:
    """Return what proposes the trial of a number: a start, or TPE, which draws at random at first."""
    from optuna.samplers import PartialFixedSampler, TPESampler

    own = derive_seed(seed, "tune", "proposal", nu, number) % 2**32
    sampler = TPESampler(seed=own, multivariate=True, n_startup_trials=_NUM_STARTUP)
    return PartialFixedSampler(dict(starts[number]), sampler) if number < len(starts) else sampler


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Optuna's notes that parts of it are experimental."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna.*")
        warnings.filterwarnings("ignore", message=".*experimental.*")
        yield
