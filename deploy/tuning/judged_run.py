"""One run of a search, carried on from rung to rung, and what its held-out clients make of the model.

A run's folder keeps what was found at each rung (`judged.json`); the run itself goes on from its checkpoint, so that
what a search pays for is rounds, and none twice.
"""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nufed.common.config import RunConfig
from nufed.common.data.as_new import client_of
from nufed.common.durable_file import write_json
from nufed.common.errors import BudgetSpentError, DivergedError, NothingTrainedError, RunError
from nufed.common.events import EventStream
from nufed.common.json_text import parse_object
from nufed.common.metric_looks import LOSS, look_of, sign_of
from nufed.deploy.experiments.cells import Cell, step_cost
from nufed.deploy.experiments.tuning import read_summary
from nufed.server.client_curves import ClientCurves
from nufed.server.clients_table import CLIENTS, read_clients_csv
from nufed.server.options import ServerOptions
from nufed.strategy.participation import num_chosen

RUNS, JUDGED = "runs", "judged.json"


@dataclass(frozen=True)
class Judged:
    """What held-out clients say of a model after s* fine-tuning steps, on their validation splits.

    Attributes:
        measure: the primary metric.
        value: its mean over the held-out clients; NaN if the run diverged.
        sign: 1 where more of it is better, else -1.
        loss: mean validation loss at s*, by which equal values are told apart.
        by_client: client id -> its value, the mean over its parts.
        num_examples: validation examples of all of them.
        seconds: of wall time, this rung's rounds alone.
    """

    measure: str = LOSS
    value: float = math.nan
    sign: float = 1.0
    loss: float = math.nan
    by_client: Mapping[str, float] = field(default_factory=dict)
    num_examples: int = 0
    seconds: float = 0.0

    @property
    def score(self) -> float:
        """Return the value, or minus it where less is better; -inf if the run diverged."""
        return self.sign * self.value if math.isfinite(self.value) else -math.inf

    @property
    def rank(self) -> tuple[float, float]:
        """Return what runs are ordered by: the score, and among equal ones the smaller loss."""
        return self.score, -self.loss if math.isfinite(self.loss) else -math.inf

    @property
    def example(self) -> float:
        """Return what one example, answered otherwise, changes the value by; 0 for what is not a share."""
        return 1.0 / self.num_examples if self.num_examples and look_of(self.measure).is_share else 0.0


def gradients_per_round(config: RunConfig) -> float:
    """Return the gradient equivalents of one round, all chosen clients together."""
    chosen = num_chosen(config.data.num_clients, config.federation.participation_fraction)
    return chosen * config.method.num_local_steps * step_cost(config)


class Clients(Protocol):
    """A federation, simulated or connected, some of whose participating clients can be held out of a run."""

    @property
    def folds(self) -> Sequence[Sequence[int]]:
        """Return positions of the participating clients of each fold."""

    def fold_of(self, seed_number: int) -> int:
        """Return the fold of the final runs with one seed."""

    def conduct(self, config: RunConfig, fold: int, options: ServerOptions) -> None:
        """Run the federation without a fold's clients in its training, and leave the run's folder."""


@dataclass(frozen=True)
class Runs:
    """Carries out a search's runs, one after another in this process.

    Attributes:
        clients: the federation, and who is held out.
        out: the search's folder.
    """

    clients: Clients
    out: Path

    def judge(self, config: RunConfig, rounds: int, fold: int) -> Judged:
        """Return what a fold's clients say of the model after so many rounds of training without them.

        Args:
            config: of the run, with all its rounds.
            rounds: how far to go now; what is done already is not done again.
            fold: who is held out.

        Raises:
            NufedError: the run cannot start.
            KeyboardInterrupt: rungs that are done stay.
        """
        place = self.place_of(config, fold)
        known = _known(place / JUDGED)
        if rounds in known:
            return known[rounds]
        if known and not math.isfinite(known[max(known)].value):
            return known[max(known)]
        started = time.perf_counter()
        found = self._advanced(config, rounds, fold)
        known[rounds] = Judged(**{**asdict(found), "seconds": time.perf_counter() - started})
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / JUDGED, {str(each): _as_json(value) for each, value in known.items()})
        return known[rounds]

    def place_of(self, config: RunConfig, fold: int) -> Path:
        """Return the folder of a run."""
        name = Cell(f"nu-{config.method.num_inner_steps}-without-{fold}", config).name
        return self.out / RUNS / name

    def forget(self, config: RunConfig, fold: int) -> None:
        """Delete models and logs of a run that is not carried on; what was found stays."""
        for folder in self.place_of(config, fold).glob("*/"):
            shutil.rmtree(folder)

    def _advanced(self, config: RunConfig, rounds: int, fold: int) -> Judged:
        place = self.place_of(config, fold)
        folder = next(iter(sorted(place.glob("*/checkpoint*"))), None)
        if folder is None and place.exists():
            shutil.rmtree(place)
        changes = {"evaluation.interval": 0, "evaluation.shots": "", "federation.num-rounds": rounds}
        resume = folder.parent if folder else None
        try:
            with EventStream() as events:
                options = ServerOptions(out=place, resume=resume, is_trial=True, events=events)
                self.clients.conduct(config.updated(changes), fold, options)
        except (DivergedError, NothingTrainedError):
            return Judged()
        except BudgetSpentError:
            pass  # it has results, of fewer rounds
        (finished,) = (each.parent for each in place.glob("*/summary.json"))
        return judged(finished)


def judged(folder: Path) -> Judged:
    """Return what the new clients of a finished run say, on their validation splits.

    Raises:
        RunError: they have no validation examples, or the run's tables are absent.
    """
    summary = read_summary(folder)
    group, step = summary.get("new") or {}, summary["primary_step"]
    measure = group.get("measure") or LOSS
    sign = sign_of(group.get("better") or look_of(measure).better)
    try:
        clients = read_clients_csv((folder / CLIENTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"Expected a table of clients in {folder}, but {error}. Delete the folder and go on.") from error
    own = [client for client in clients if client.group == "new" and client.num_validation]
    if not own:
        raise RunError(
            "Expected held-out clients to have validation examples to be judged on, but none has. "
            "Raise data.validation-fraction."
        )
    parts: dict[str, list[float]] = {}
    for client in own:
        if (value := _at(client, measure, step)) is not None:
            parts.setdefault(client_of(client.client_id), []).append(value)
    values = {name: _mean_of_finite(found) for name, found in parts.items()}
    finite = [value for value in values.values() if math.isfinite(value)]
    losses = [float(client.validation_loss[step]) for client in own if client.validation_loss is not None]
    diverged = any(client.has_diverged(step) for client in own) or not finite
    return Judged(
        measure=measure,
        value=math.nan if diverged else math.fsum(finite) / len(finite),
        sign=sign,
        loss=math.fsum(losses) / len(losses) if losses else math.nan,
        by_client=values,
        num_examples=sum(client.num_validation for client in own),
    )


def _mean_of_finite(values: Sequence[float]) -> float:
    """Return the mean over the parts of one client for which the measure is defined; NaN for none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _at(client: ClientCurves, measure: str, step: int) -> float | None:
    curve = {LOSS: client.validation_loss, "accuracy": client.validation_accuracy}.get(measure)
    curve = client.metrics.get(f"validation-{measure}") if curve is None else curve
    return None if curve is None else float(curve[step])


def _as_json(value: Judged) -> dict[str, object]:
    numbers = {"value": value.value, "loss": value.loss}
    clients = {name: each if math.isfinite(each) else None for name, each in value.by_client.items()}
    finite = {name: each if math.isfinite(each) else None for name, each in numbers.items()}
    return {**asdict(value), **finite, "by_client": clients}


def _known(path: Path) -> dict[int, Judged]:
    """Return rounds -> what was found after them, the fewest first."""
    if not path.is_file():
        return {}
    try:
        record = parse_object(path.read_text(encoding="utf-8"))
        found = {int(rounds): Judged(**_from_json(value)) for rounds, value in record.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"Expected what a run has found in {path}, but {error}. Delete it and go on.") from error
    return dict(sorted(found.items()))


def _from_json(value: Mapping[str, Any]) -> dict[str, Any]:
    nan = {key: math.nan for key in ("value", "loss") if value.get(key) is None}
    clients = {name: math.nan if each is None else each for name, each in value["by_client"].items()}
    return {**value, **nan, "by_client": clients}
