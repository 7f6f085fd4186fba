"""Finished runs, read back from their folders: curves of every client, and progress over rounds with its costs."""

import csv
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.common.examples import Group
from nufed.common.json_text import parse_object
from nufed.common.meta.estimators import HVP_COST
from nufed.common.metric_looks import LOSS, look_of
from nufed.deploy.experiments.cells import NEEDED
from nufed.deploy.experiments.tuning import read_summary
from nufed.server.checkpoint import load_checkpoint
from nufed.server.client_curves import ClientCurves
from nufed.server.clients_table import read_clients_csv
from nufed.server.history import History
from nufed.server.hostile import recorded_attack
from nufed.server.progress_lines import mean_of
from nufed.server.resuming import stored_config

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClientTable:
    """The final curves of one group's clients.

    Attributes:
        client_ids: [N].
        num_test: [N] examples judged on.
        measures: metric, or `loss` -> [N, S+1]; NaN where a client has diverged, or the metric is undefined.
        clients: what each of them answered.
    """

    client_ids: tuple[str, ...]
    num_test: NDArray[np.int64]
    measures: Mapping[str, Floats]
    clients: tuple[ClientCurves, ...] = ()

    @property
    def loss(self) -> Floats:
        """Return the losses, [N, S+1]."""
        return self.measures[LOSS]

    def curves(self, measure: str) -> Floats:
        """Return [N, S+1] of a measure; all NaN where the run does not have it."""
        return self.measures.get(measure, np.full(self.loss.shape, np.nan))

    def at(self, measure: str, step: int) -> Floats:
        """Return the clients' numbers after a step, [n]: those that are defined, or all where a client has diverged."""
        values = self.curves(measure)[:, step]
        if np.isnan(self.loss[:, step]).any() or not np.isfinite(values).any():
            return values
        return values[np.isfinite(values)]

    def means(self, measure: str) -> Floats:
        """Return the mean over clients after each step, [S+1]; NaN where a client has diverged."""
        return np.array([self.at(measure, step).mean() for step in range(self.loss.shape[1])])

    def num_undefined(self, measure: str, step: int) -> int:
        """Return for how many clients that have not diverged the measure is undefined."""
        missing = np.isnan(self.curves(measure)[:, step]) & np.isfinite(self.loss[:, step])
        return int(missing.sum())

    def baseline(self, measure: str) -> float:
        """Return the mean over clients of what the same answer to every example gets; NaN where nobody said so."""
        found = [client.baselines.get(measure, math.nan) for client in self.clients]
        defined = [value for value in found if math.isfinite(value)]
        return sum(defined) / len(defined) if defined else math.nan


@dataclass(frozen=True)
class Progress:
    """What evaluations on the way have shown of the participating clients.

    Attributes:
        rounds: [E].
        curves: [E, S+1] mean of the primary metric.
        gradients: [E] gradient equivalents until then, of one client that takes part in every round.
        num_bytes: [E] arrays sent and received by the server until then.
    """

    rounds: NDArray[np.int64]
    curves: Floats
    gradients: Floats
    num_bytes: Floats


@dataclass(frozen=True)
class FinishedRun:
    """One run.

    Attributes:
        method: name of the method.
        setting: name of the setting.
        seed: of the run.
        config: its options.
        summary: content of summary.json.
        groups: final curves of the participating and of the new clients, of those groups that there are; without
            clients that attacked.
        progress: over the rounds.
        folder: where it is.
    """

    method: str
    setting: str
    seed: int
    config: RunConfig
    summary: Mapping[str, Any]
    groups: Mapping[Group, ClientTable]
    progress: Progress
    folder: Path

    @property
    def measure(self) -> str:
        """Return what the run is judged by."""
        if stated := self.summary.get("primary_metric"):
            return str(stated)
        return "accuracy" if any("accuracy" in table.measures for table in self.groups.values()) else LOSS

    @property
    def better(self) -> str:
        """Return whether more of the measure is better, `higher`, or less, `lower`."""
        stated = [group["better"] for name in self.groups if (group := self.summary.get(name)) and group.get("better")]
        return str(stated[0]) if stated else look_of(self.measure).better

    @property
    def metrics(self) -> list[str]:
        """Return the metrics beside the measure and the loss, but for those of single outputs."""
        names = dict.fromkeys(name for table in self.groups.values() for name in table.measures)
        return [name for name in names if name not in (self.measure, LOSS) and not name.rpartition("-")[2].isdigit()]


def read_run(folder: Path, *, method: str = "", setting: str = "") -> FinishedRun:
    """Return a run from its folder.

    Args:
        folder: a run folder.
        method: name of the method; the run's own name if empty.
        setting: name of the setting.

    Raises:
        RunError: it is no folder of a finished run.
    """
    config, summary = stored_config(folder), read_summary(folder)
    if summary.get("status") == "nothing-trained":
        raise RunError(f"Expected a run with results in {folder}, but it has trained nothing. {summary.get('reason')}")
    if missing := [name for name in NEEDED if name in (summary.get("outside_epsilon") or {}).get("withheld", ())]:
        raise RunError(
            f"Expected what a report is made of in {folder}, but the run withholds {', '.join(missing)} (privacy.dp). "
            f"Run it with --publish {','.join(NEEDED)} where the data may be looked at."
        )
    try:
        str(summary["status"]), float(summary["seconds"]), int(summary["rounds"])
        attackers = frozenset((recorded_attack(folder) or {"clients": ()})["clients"])
        groups, progress = _read_clients(folder / "clients.csv", attackers), _read_progress(folder, summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise RunError(
            f"Expected the whole records of a run in {folder}, but its clients.csv, metrics.jsonl or summary.json is "
            f"damaged or missing ({type(error).__name__}: {error}). Put the file back, or run it again."
        ) from error
    if not groups:
        raise RunError(f"Expected curves of clients in {folder / 'clients.csv'}, but it has none. Run it again.")
    return FinishedRun(method or config.name, setting, config.seed, config, summary, groups, progress, folder)


def _read_clients(path: Path, attackers: Container[str]) -> dict[Group, ClientTable]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"Expected curves of clients in {path}, but {error.strerror}. Run it to its end.") from error
    header = next(csv.reader(text.splitlines()), [])
    if header and "loss_0" not in header:
        raise RunError(f"Expected columns loss_0, loss_1, … in {path}. Give a folder that a run left.")
    clients, tables = read_clients_csv(text), dict[Group, ClientTable]()
    groups: tuple[Group, ...] = ("participating", "new")
    for group in groups:
        members = tuple(each for each in clients if each.group == group and each.client_id not in attackers)
        if members:
            names = tuple(client.client_id for client in members)
            sizes = np.array([client.num_test for client in members])
            tables[group] = ClientTable(names, sizes, _measures(members), members)
    return tables


def _measures(members: Sequence[ClientCurves]) -> dict[str, Floats]:
    further = (key.removeprefix("test-") for client in members for key in client.metrics if key.startswith("test-"))
    found: dict[str, Floats] = {}
    for name in dict.fromkeys(["accuracy", LOSS, *further]):
        curves = [client.curve(name) for client in members]
        nothing = (math.nan,) * len(members[0].test_loss)
        if any(curve is not None for curve in curves):
            found[name] = np.array([nothing if curve is None else curve for curve in curves], dtype=np.float64)
    return found


def _read_progress(folder: Path, summary: Mapping[str, Any]) -> Progress:
    """Return the evaluations with the costs until then.

    The checkpoint knows the evaluations on the way, the summary the last one, and each round has recorded its costs.
    """
    checkpoint = load_checkpoint(folder)
    evaluations = list(History.from_json(checkpoint.history).evaluations) if checkpoint else []
    last = summary.get("participating")
    if evaluations and last and evaluations[-1][0] < summary["rounds"]:
        curve = mean_of(last)
        evaluations.append((summary["rounds"], tuple(math.nan if each is None else each for each in curve)))
    gradients, sent = {0: 0.0}, {0: 0.0}
    total, num_bytes = 0.0, 0.0
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = parse_object(line)
        work = record["gradient_evaluations"] + HVP_COST * record["hvps"]
        total += work / max(1, len(record["clients"]))
        num_bytes += record["bytes_up"] + record["bytes_down"]
        gradients[record["round"]], sent[record["round"]] = total, num_bytes
    rounds = [done for done, _ in evaluations if done in gradients]
    return Progress(
        np.array(rounds, dtype=np.int64),
        np.array([curve for done, curve in evaluations if done in gradients], dtype=np.float64),
        np.array([gradients[done] for done in rounds], dtype=np.float64),
        np.array([sent[done] for done in rounds], dtype=np.float64),
    )
