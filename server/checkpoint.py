"""What a run needs to go on after a crash: the server's model, the round it belongs to, and what was seen so far.

Everything else that a run depends on follows from its configuration: random streams are derived from the seed and
the round (common/rng.py), and what simulated clients keep is in files that the checkpoint names. So that a run goes on
as itself or not at all, a checkpoint bears a checksum of itself and says which options and which log it belongs to;
`nufed.server.resuming` compares.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from nufed.common.config import RunConfig
from nufed.common.durable_file import is_sealed, read_metadata, read_tensors, write_tensors
from nufed.common.errors import ConfigError, RunError
from nufed.common.params import Params
from nufed.common.privacy.ledger import Mark

CHECKPOINT = "checkpoint.safetensors"
FORMAT = "nufed-checkpoint-2"
FORMAT_WITHOUT_CHECKSUMS = "nufed-checkpoint-1"
"""Of NuFed 0.1."""
SERVER_STATE = "server-state/"
"""Before the names of what the server's optimizer remembers."""


@dataclass(frozen=True)
class LogMark:
    """How much of metrics.jsonl there was when a checkpoint was made.

    Attributes:
        size: bytes from the start.
        sha256: of these bytes, in hexadecimal.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Origin:
    """What a checkpoint belongs to.

    Attributes:
        configs: the run's options; also those it is about to have, while config.json is being replaced.
        log: of the run's metrics.jsonl.
        ledger: of the run's privacy.jsonl; None without client-level differential privacy.
    """

    configs: tuple[RunConfig, ...]
    log: LogMark
    ledger: Mark | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round.

    Attributes:
        round: k, server updates done; 0 before the first.
        params: w_k.
        history: JSON values that the summary needs, e.g. the evaluations and costs so far.
        origin: what it belongs to; None if it does not say, as those of NuFed 0.1.
        frozen: hash of the model's frozen part; empty where everything is trained.
        server_state: what the server's optimizer remembers (strategy/server_step.py).
        client_states: which files have what simulated clients keep (server/client_states.py); None where nobody does.
    """

    round: int
    params: Params
    history: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    frozen: str = ""
    server_state: Params = field(default_factory=dict)
    client_states: Mapping[str, list[Any]] | None = None


def save_checkpoint(  # noqa: PLR0913 - all but one by name
    folder: Path,
    *,
    round: int,  # noqa: A002 - the vocabulary's word
    params: Mapping[str, Tensor],
    history: Mapping[str, Any],
    origin: Origin | None = None,
    frozen: str = "",
    server_state: Mapping[str, Tensor] = MappingProxyType({}),
    client_states: Mapping[str, list[Any]] | None = None,
) -> None:
    """Replace the folder's checkpoint; a crash at any moment leaves the old one or the new one, whole.

    Args:
        folder: the run folder.
        round: k, server updates done.
        params: w_k.
        history: JSON values; NaN and infinities come back as None.
        origin: what it belongs to.
        frozen: hash of the model's frozen part; empty where everything is trained.
        server_state: what the server's optimizer remembers.
        client_states: names the files of what simulated clients keep.
    """
    metadata: dict[str, Any] = {"format": FORMAT, "round": round, "history": history}
    if frozen:
        metadata["frozen"] = frozen
    if origin:
        metadata["configs"] = [config.flat() for config in origin.configs]
        metadata["log"] = vars(origin.log)
        if origin.ledger:
            metadata["ledger"] = vars(origin.ledger)
    if client_states is not None:
        metadata["client_states"] = dict(sorted(client_states.items()))
    if server_state:
        metadata["server_state"] = sorted(server_state)
    remembered = {SERVER_STATE + name: tensor for name, tensor in server_state.items()}
    write_tensors(folder / CHECKPOINT, {**params, **remembered}, metadata, sealed=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the folder's checkpoint, or None if it has none yet.

    Raises:
        RunError: it is torn or changed, or was not written by NuFed.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    sealed = is_sealed(path)
    arrays, metadata = read_tensors(path)
    round_done, history = _checked(path, metadata, sealed=sealed)
    state = {name: arrays.pop(SERVER_STATE + name) for name in metadata.get("server_state", ())}
    kept: dict[str, Any] = {"server_state": state, "client_states": metadata.get("client_states")}
    return Checkpoint(round_done, arrays, history, _origin(path, metadata), str(metadata.get("frozen", "")), **kept)


def checkpoint_round(folder: Path) -> int | None:
    """Return the round of the folder's checkpoint without reading its arrays, or None if it has none yet.

    Raises:
        RunError: its metadata are torn or were not written by NuFed.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    return _checked(path, read_metadata(path))[0]


def _checked(path: Path, metadata: Mapping[str, Any], *, sealed: bool | None = None) -> tuple[int, dict[str, Any]]:
    stored_format, round_done, history = (metadata.get(key) for key in ("format", "round", "history"))
    is_known = stored_format in (FORMAT, FORMAT_WITHOUT_CHECKSUMS)
    if not is_known or not isinstance(round_done, int) or not isinstance(history, dict):
        raise RunError(
            f"Expected a checkpoint of format {FORMAT} in {path}, but found format {stored_format!r}, "
            f"round {round_done!r}. Resume with the version of NuFed that wrote it, or start a new run."
        )
    if sealed is not None and sealed != (stored_format == FORMAT):
        raise RunError(f"Expected the checkpoint's checksum in {path}, but it has none: it was changed. {_ADVICE}")
    return round_done, history


def _origin(path: Path, metadata: Mapping[str, Any]) -> Origin | None:
    if "configs" not in metadata:
        return None
    try:
        configs = tuple(RunConfig.parse(options) for options in metadata["configs"])
        ledger = Mark(**metadata["ledger"]) if "ledger" in metadata else None
        return Origin(configs, LogMark(**metadata["log"]), ledger)
    except (ConfigError, KeyError, TypeError) as error:
        raise RunError(
            f"Expected the options of a run in {path}, but {error}. Resume with the version of NuFed that wrote it, or "
            "start a new run."
        ) from error


_ADVICE = "Put back a copy that is whole, or start a new run."
