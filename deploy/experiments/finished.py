"""Finished runs, read back from their folders: curves of every client, and progress over rounds with its costs."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.common.examples import Group
from nufed.common.json_text import parse_object
from nufed.common.meta.estimators import HVP_COST
from nufed.deploy.experiments.tuning import read_summary
from nufed.server.checkpoint import load_checkpoint
from nufed.server.history import History
from nufed.server.resuming import stored_config

Floats = NDArray[np.float64]
Measure = Literal["accuracy", "loss"]


@dataclass(frozen=True)
class ClientTable:
    """The final curves of one group's clients.

    Attributes:
        client_ids: [N].
        num_test: [N] examples judged on.
        accuracy: [N, S+1] in [0, 1]; None for regression.
        loss: [N, S+1].
    """

    client_ids: tuple[str, ...]
    num_test: NDArray[np.int64]
    accuracy: Floats | None
    loss: Floats

    def curves(self, measure: Measure) -> Floats:
        """Return [N, S+1] of a measure that the run has."""
        if measure == "accuracy" and self.accuracy is not None:
            return self.accuracy
        return self.loss


@dataclass(frozen=True)
class Progress:
    """What evaluations on the way have shown of the participating clients.

    Attributes:
        rounds: [E].
        curves: [E, S+1] mean accuracy, or loss for regression.
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
        groups: final curves of the participating and of the new clients, of those groups that there are.
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
    def measure(self) -> Measure:
        """Return what the run is judged by."""
        return "loss" if all(table.accuracy is None for table in self.groups.values()) else "accuracy"


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
    try:
        str(summary["status"]), float(summary["seconds"]), int(summary["rounds"])
        groups, progress = _read_clients(folder / "clients.csv"), _read_progress(folder, summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise RunError(
            f"Expected the whole records of a run in {folder}, but its clients.csv, metrics.jsonl or summary.json is "
            f"damaged or missing ({type(error).__name__}: {error}). Put the file back, or run it again."
        ) from error
    if not groups:
        raise RunError(f"Expected curves of clients in {folder / 'clients.csv'}, but it has none. Run it again.")
    return FinishedRun(method or config.name, setting, config.seed, config, summary, groups, progress, folder)


def _read_clients(path: Path) -> dict[Group, ClientTable]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise RunError(f"Expected curves of clients in {path}, but {error.strerror}. Run it to its end.") from error
    tables: dict[Group, ClientTable] = {}
    for group in ("participating", "new"):
        members = [row for row in rows if row["group"] == group]
        if members:
            tables[group] = ClientTable(
                tuple(row["client_id"] for row in members),
                np.array([int(row["num_test"]) for row in members]),
                _columns(members, "accuracy_"),
                _columns(members, "loss_", required=path),
            )
    return tables


def _columns(rows: Sequence[Mapping[str, str]], prefix: str, required: Path | None = None) -> Any:
    names = [name for name in rows[0] if name.startswith(prefix)]
    if not names:
        if required:
            raise RunError(f"Expected columns {prefix}0, {prefix}1, … in {required}. Give a folder that a run left.")
        return None
    return np.array([[float(row[name] or "nan") for name in names] for row in rows])


def _read_progress(folder: Path, summary: Mapping[str, Any]) -> Progress:
    """Return the evaluations with the costs until then.

    The checkpoint knows the evaluations on the way, the summary the last one, and each round has recorded its costs.
    """
    checkpoint = load_checkpoint(folder)
    evaluations = list(History.from_json(checkpoint.history).evaluations) if checkpoint else []
    last = summary.get("participating")
    if evaluations and last and evaluations[-1][0] < summary["rounds"]:
        curve = last[last["measure"]]
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
