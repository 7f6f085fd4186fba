"""A run's folder: everything a run leaves, whole even after a crash.

config.json            complete; `--config` reads it back
environment.json       engine, versions, platform and threads that the numbers came from
metrics.jsonl          one JSON object per round, flushed to disk round by round
events.jsonl           what happened, one JSON object per event (server/events_file.py); nothing is computed from it
privacy.jsonl          with client-level differential privacy: what each model has cost (common/privacy/ledger.py)
checkpoint.safetensors the last finished round (server/checkpoint.py); `--resume` starts from it
client-states/         in a simulation, what clients keep between rounds (server/client_states.py)
clients.csv            one line per client: its adaptation curve
model.safetensors      the server's model
summary.json           final numbers, and how the run ended (server/outcome.py)
curves.png             progress over rounds, and the adaptation curves
shots.csv, shots.png   where the run asks for `evaluation.shots`: curves after fine-tuning on few examples
"""

import platform
import secrets
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nufed.common import __version__
from nufed.common.client_states import RUN_ID
from nufed.common.config import RunConfig
from nufed.common.data import SharedScaling
from nufed.common.durable_file import (
    read_tensors,
    remove_partials,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
    writing,
)
from nufed.common.errors import RunError
from nufed.common.params import Params
from nufed.common.privacy.ledger import LEDGER, PrivacyLedger
from nufed.common.privacy.noise import TEST_KEY_WARNING
from nufed.common.settings import process_settings
from nufed.server.checkpoint import CHECKPOINT, Origin, load_checkpoint, save_checkpoint
from nufed.server.client_curves import ClientCurves
from nufed.server.clients_table import CLIENTS, clients_csv
from nufed.server.hostile import ENVIRONMENT, Hostile
from nufed.server.outcome import SUMMARY
from nufed.server.resuming import CONFIG, resume_point, stored_config
from nufed.server.run_lock import locked
from nufed.server.run_log import METRICS, RunLog, log_mark
from nufed.server.shots import SHOTS_TABLE, shots_csv
from nufed.strategy.private_rounds import ClientPrivacy

MODEL, CURVES = "model.safetensors", "curves.png"
MODEL_FORMAT = "nufed-model-1"
SHOTS_FIGURE = "shots.png"
_WRITTEN_WHOLE = (CONFIG, ENVIRONMENT, METRICS, CHECKPOINT, CLIENTS, MODEL, SUMMARY, CURVES, SHOTS_TABLE, SHOTS_FIGURE)


@dataclass(frozen=True)
class RunFolder:
    """Holds a run's folder and its open log between rounds; use it in a `with` block, or close it.

    Until then no other process can write to the folder (on systems with file locks).

    Attributes:
        path: the folder.
        config: the run's options, as in config.json.
        ledger: of client-level differential privacy; None without it.
    """

    path: Path
    config: RunConfig
    _log: RunLog
    _held: ExitStack
    ledger: PrivacyLedger | None = None

    @classmethod
    def create(  # noqa: PLR0913 - all but two by name
        cls,
        out: Path,
        config: RunConfig,
        *,
        now: datetime,
        engine: str = "fleet",
        hostile: Hostile | None = None,
        privacy: ClientPrivacy | None = None,
    ) -> "RunFolder":
        """Make `<out>/<YYYYmmdd-HHMMSS>-<name>` (with a number behind it if that exists) and describe the run in it.

        Args:
            out: where to.
            config: the run's options.
            now: when it starts.
            engine: what runs the clients.
            hostile: clients that attack.
            privacy: client-level, whose ledger is there before anything else is.

        Raises:
            RunError: the folder cannot be made.
        """
        path = _make_unique(out, f"{now:%Y%m%d-%H%M%S}-{config.name}")
        with ExitStack() as held:
            held.enter_context(locked(path))
            ledger = PrivacyLedger.create(path / LEDGER, privacy.terms, privacy.epsilon) if privacy else None
            write_text(path / CONFIG, config.to_json())
            described = {"started": now.isoformat(timespec="seconds"), "engine": engine, **environment()}
            if config.method.client_state != "none":
                described[RUN_ID] = secrets.token_hex(16)
            if config.privacy.dp != "none" and process_settings().test_privacy_key:
                described["warning"] = TEST_KEY_WARNING
            write_json(path / ENVIRONMENT, {**described, **({"hostile": hostile.to_json()} if hostile else {})})
            return cls(path, config, RunLog(path / METRICS, held), held.pop_all(), ledger)

    @classmethod
    def open_existing(
        cls, path: Path, *, config: RunConfig | None = None, at_round: int | None = None, keep_results: bool = False
    ) -> "RunFolder":
        """Open a run's folder to go on after its checkpoint.

        Rounds in metrics.jsonl that lie beyond the checkpoint, and a last line that was cut short, are dropped: they
        will be computed again. What a killed process was about to write is removed.

        Args:
            path: the run folder.
            config: options to go on with, e.g. with more rounds; None keeps those of config.json.
            at_round: the round that the caller goes on after; None takes that of the checkpoint.
            keep_results: whether the old summary stays until it is replaced; otherwise it goes, because it will not be
                true any more.

        Raises:
            RunError: the folder is not a run's, its files are torn or do not belong together, or another process
                writes to it or has gone on with it.
        """
        stored = stored_config(path)
        with ExitStack() as held:
            held.enter_context(locked(path))
            point = resume_point(path)
            if at_round not in (None, point.round):
                raise RunError(
                    f"Expected the run in {path} at round {at_round}, but it is at round {point.round}: another "
                    "process has gone on with it. Give the command again."
                )
            remove_partials(path, _WRITTEN_WHOLE)
            if config is not None and config != stored:
                if checkpoint := point.checkpoint:  # fits both until config.json is replaced
                    save_checkpoint(
                        path,
                        round=checkpoint.round,
                        params=checkpoint.params,
                        history=checkpoint.history,
                        origin=Origin((stored, config), log_mark(point.log), point.ledger),
                        frozen=checkpoint.frozen,
                        server_state=checkpoint.server_state,
                        client_states=checkpoint.client_states,
                    )
                write_text(path / CONFIG, config.to_json())
            if not keep_results:
                with writing(path / SUMMARY):
                    (path / SUMMARY).unlink(missing_ok=True)
            log = RunLog(path / METRICS, held, len(point.log))
            return cls(path, config or stored, log, held.pop_all(), _ledger(path, config or stored))

    def __enter__(self) -> "RunFolder":
        """Return the folder itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the metrics file."""
        self.close()

    def close(self) -> None:
        """Close the metrics file and let others write; what is not a round can still be written."""
        self._held.close()

    def append_round(self, record: Mapping[str, Any], *, durable: bool = True) -> None:
        """Add one line to metrics.jsonl and, if `durable`, wait for the disk; NaN and infinities become null."""
        self._log.append(record, durable=durable)

    def save_checkpoint(  # noqa: PLR0913 - by name
        self,
        *,
        round: int,  # noqa: A002 - the vocabulary's word
        params: Mapping[str, Tensor],
        history: Mapping[str, Any],
        frozen: str = "",
        server_state: Mapping[str, Tensor] = MappingProxyType({}),
        client_states: Mapping[str, list[Any]] | None = None,
    ) -> None:
        """Replace the checkpoint by one of this run after the rounds that were appended."""
        origin = Origin((self.config,), self._log.mark, self.ledger.mark if self.ledger else None)
        kept: dict[str, Any] = {"origin": origin, "frozen": frozen, "server_state": server_state}
        kept["client_states"] = client_states
        save_checkpoint(self.path, round=round, params=params, history=history, **kept)

    def write_clients(self, curves: Iterable[ClientCurves]) -> bytes:
        """Write clients.csv, participating clients first, each group by client id, and return its content."""
        ordered = sorted(curves, key=lambda client: (client.group != "participating", client.client_id))
        content = clients_csv(ordered).encode()
        write_bytes(self.path / CLIENTS, content)
        if shots := shots_csv(ordered):
            write_text(self.path / SHOTS_TABLE, shots)
        return content

    def remove_results(self) -> None:
        """Remove what an earlier part of the run has left of a model and its evaluation."""
        for name in (CLIENTS, MODEL, CURVES, SHOTS_TABLE, SHOTS_FIGURE):
            with writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    def write_model(
        self,
        params: Mapping[str, Tensor],
        round: int,  # noqa: A002 - the vocabulary's word
        scaling: SharedScaling | None = None,
        frozen: str = "",
    ) -> None:
        """Write the server's model after `round` server updates; `load_model` reads it back.

        Args:
            params: the model.
            round: server updates made.
            scaling: of the inputs that it takes and the values that it predicts.
            frozen: hash of its frozen part, of which nothing else is written down.
        """
        shared = scaling or SharedScaling()
        metadata = {
            "format": MODEL_FORMAT,
            "version": __version__,
            "round": round,
            "config": self.config.model_dump(by_alias=True),
            "target_scaling": shared.targets and shared.targets.to_json(),
            "preparation": shared.inputs and shared.inputs.to_json(),
            **({"frozen": frozen} if frozen else {}),
        }
        write_tensors(self.path / MODEL, params, metadata)

    def write_figures(self, image: bytes, name: str = CURVES) -> None:
        """Write curves.png, as drawn by `nufed.server.figures.draw_curves`, or shots.png likewise."""
        write_bytes(self.path / name, image)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json; its `status` is `complete` unless the summary says otherwise."""
        write_json(self.path / SUMMARY, {"status": "complete", **summary})


def _ledger(path: Path, config: RunConfig) -> PrivacyLedger | None:
    """Return the ledger of a run to go on with, whose budget may be another now; None without one."""
    if config.privacy.dp != "client":
        return None
    ledger = PrivacyLedger.open_existing(path / LEDGER)
    if ledger.budget != config.privacy.epsilon:
        ledger.set_budget(config.privacy.epsilon)
    return ledger


def environment() -> dict[str, str | int]:
    """Return the versions, platform and threads that numbers of this process depend on."""
    import flwr

    return {
        "nufed": __version__,
        "flwr": flwr.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_threads": torch.get_num_threads(),
        "deterministic_algorithms": int(torch.are_deterministic_algorithms_enabled()),
    }


def load_model(path: Path) -> tuple[Params, dict[str, Any]]:
    """Return the parameters and the metadata (`round`, `config`, `version`, `frozen`) of a model.safetensors.

    Args:
        path: the file, or the run folder that holds it.

    Raises:
        RunError: it is absent, torn or was not written by NuFed.
    """
    file = path / MODEL if path.is_dir() else path
    params, metadata = read_tensors(file)
    if metadata.get("format") != MODEL_FORMAT:
        raise RunError(
            f"Expected a model of format {MODEL_FORMAT} in {file}, but found {metadata.get('format')!r}. "
            f"Give a run's {MODEL}."
        )
    return params, metadata


def kept_params(path: Path) -> tuple[Params, str]:
    """Return the arrays of a run's final model, or of its last finished round, and the hash of the frozen part.

    There are none if no round is finished.

    Raises:
        RunError: the file is torn.
    """
    if (path / MODEL).is_file():
        params, stored = load_model(path)
        return params, str(stored.get("frozen", ""))
    checkpoint = load_checkpoint(path)
    return (checkpoint.params, checkpoint.frozen) if checkpoint else ({}, "")


def _make_unique(out: Path, name: str) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for attempt in count(1):
            path = out / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise RunError(
            f"Expected to make the run's folder in {out}, but the system refused ({error.strerror}). "
            "Give --out a folder that can be written to."
        ) from error
    raise AssertionError("count() does not end")
