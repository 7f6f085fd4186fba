"""A run's folder: everything a run leaves, whole even after a crash.

config.json            complete; `--config` reads it back
environment.json       engine, versions, platform and threads that the numbers came from
metrics.jsonl          one JSON object per round, flushed to disk round by round
checkpoint.safetensors the last finished round (server/checkpoint.py); `--resume` starts from it
clients.csv            one line per client: its adaptation curve
model.safetensors      the server's model
curves.png             progress over rounds, and the adaptation curves
summary.json           final numbers, status `complete` or `interrupted`
"""

import csv
import io
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from nufed.common import __version__
from nufed.common.config import RunConfig
from nufed.common.durable_file import (
    json_ready,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
    writing,
)
from nufed.common.errors import RunError
from nufed.common.params import Params
from nufed.server.adaptation_curves import ClientCurves, Curve
from nufed.server.checkpoint import checkpoint_round

CONFIG, ENVIRONMENT, METRICS, CLIENTS = "config.json", "environment.json", "metrics.jsonl", "clients.csv"
MODEL, CURVES, SUMMARY = "model.safetensors", "curves.png", "summary.json"
MODEL_FORMAT = "nufed-model-1"


@dataclass(frozen=True)
class RunFolder:
    """Holds a run's folder and its open metrics file between rounds; use it in a `with` block, or close it.

    Until then no other process can write to the folder (on systems with file locks).

    Attributes:
        path: the folder.
        config: the run's options, as in config.json.
    """

    path: Path
    config: RunConfig
    _metrics: IO[bytes]
    _held: ExitStack

    @classmethod
    def create(cls, out: Path, config: RunConfig, *, now: datetime, engine: str = "fleet") -> "RunFolder":
        """Make `<out>/<YYYYmmdd-HHMMSS>-<name>` (with a number behind it if that exists) and describe the run in it.

        Raises:
            RunError: the folder cannot be made.
        """
        path = _make_unique(out, f"{now:%Y%m%d-%H%M%S}-{config.name}")
        with ExitStack() as held:
            held.enter_context(_locked(path))
            write_text(path / CONFIG, config.to_json())
            write_json(
                path / ENVIRONMENT, {"started": now.isoformat(timespec="seconds"), "engine": engine, **environment()}
            )
            return cls(path, config, _opened(path, held), held.pop_all())

    @classmethod
    def open_existing(cls, path: Path, *, config: RunConfig | None = None) -> "RunFolder":
        """Open a run's folder to go on after its checkpoint.

        Rounds in metrics.jsonl that lie beyond the checkpoint, and a last line that was cut short, are dropped: they
        will be computed again. The old summary goes too, because it will not be true any more.

        Args:
            path: the run folder.
            config: options to go on with, e.g. with more rounds; None keeps those of config.json.

        Raises:
            RunError: the folder is not a run's, its checkpoint or metrics are torn, or another process writes to it.
        """
        stored = stored_config(path)
        with ExitStack() as held:
            held.enter_context(_locked(path))
            if config is not None and config != stored:
                write_text(path / CONFIG, config.to_json())
            kept = _rounds_up_to(path / METRICS, checkpoint_round(path) or 0)
            write_bytes(path / METRICS, kept)
            with writing(path / METRICS):
                (path / SUMMARY).unlink(missing_ok=True)
            return cls(path, config or stored, _opened(path, held), held.pop_all())

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
        line = json.dumps(json_ready(record), allow_nan=False, ensure_ascii=False) + "\n"
        with writing(self.path / METRICS):
            self._metrics.write(line.encode())
            if durable:
                os.fsync(self._metrics.fileno())

    def write_clients(self, curves: Iterable[ClientCurves]) -> None:
        """Write clients.csv: participating clients first, each group by client id."""
        ordered = sorted(curves, key=lambda client: (client.group != "participating", client.client_id))
        write_text(self.path / CLIENTS, clients_csv(ordered))

    def write_model(self, params: Mapping[str, Tensor], round: int) -> None:  # noqa: A002 - the vocabulary's word
        """Write the server's model after `round` server updates; `load_model` reads it back."""
        metadata = {
            "format": MODEL_FORMAT,
            "version": __version__,
            "round": round,
            "config": self.config.model_dump(by_alias=True),
        }
        write_tensors(self.path / MODEL, params, metadata)

    def write_figures(self, image: bytes) -> None:
        """Write curves.png, as drawn by `nufed.server.figures.draw_curves`."""
        write_bytes(self.path / CURVES, image)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json; its `status` is `complete` unless the summary says otherwise."""
        write_json(self.path / SUMMARY, {"status": "complete", **summary})


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


def stored_config(path: Path) -> RunConfig:
    """Return the options of an existing run folder.

    Raises:
        RunError: the folder is not a run's.
    """
    if not (path / CONFIG).is_file():
        what = "is a folder without config.json" if path.is_dir() else "does not exist"
        raise RunError(f"Expected a run folder at {path}, but it {what}. Give --resume a folder that a run left.")
    return RunConfig.load(path / CONFIG)


def load_model(path: Path) -> tuple[Params, dict[str, Any]]:
    """Return the parameters and the metadata (`round`, `config`, `version`) of a model.safetensors.

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


def clients_csv(clients: Sequence[ClientCurves]) -> str:
    """Return one line per client; curves that no client has make no columns, and missing ones leave cells empty."""
    curves_by_name: dict[str, list[Curve | None]] = {
        "accuracy": [client.test_accuracy for client in clients],
        "loss": [client.test_loss for client in clients],
        "validation_accuracy": [client.validation_accuracy for client in clients],
        "validation_loss": [client.validation_loss for client in clients],
    }
    columns = {
        name: _columns(curves) for name, curves in curves_by_name.items() if any(curve is not None for curve in curves)
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["client_id", "group", "num_support", "num_validation", "num_test"]
    writer.writerow([*header, *(f"{name}_{step}" for name, rows in columns.items() for step in range(len(rows[0])))])
    for index, client in enumerate(clients):
        sizes = [client.num_support, client.num_validation, client.num_test]
        writer.writerow(
            [client.client_id, client.group, *sizes, *(x for rows in columns.values() for x in rows[index])]
        )
    return text.getvalue()


def _columns(curves: Sequence[Curve | None]) -> list[Sequence[float | str]]:
    length = max(len(curve) for curve in curves if curve is not None)
    return [curve if curve is not None else [""] * length for curve in curves]


def _opened(path: Path, held: ExitStack) -> IO[bytes]:
    """Return a run's metrics, to be written to until `held` is closed."""
    with writing(path / METRICS):
        return held.enter_context((path / METRICS).open("ab", buffering=0))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from the folder, where the system has file locks.

    Raises:
        RunError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"Expected {path} to be free, but another process is writing this run. Wait for it, or end it, and "
                    "go on."
                ) from error
        yield
    finally:
        os.close(descriptor)


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


def _rounds_up_to(path: Path, last: int) -> bytes:
    """Return the whole lines of metrics.jsonl whose round is at most `last`."""
    kept = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            break
        try:
            done = json.loads(line)["round"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"Expected one JSON object with a round in line {number} of {path}, but {error}. "
                "Put the line right or delete it, then resume."
            ) from error
        if done <= last:
            kept.append(line)
    return b"".join(kept)
