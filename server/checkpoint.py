"""What a run needs to go on after a crash: the server's model, the round it belongs to, and what was seen so far.

Everything else that a run depends on follows from its configuration: random streams are derived from the seed and
the round (common/rng.py), and clients keep nothing between rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nufed.common.durable_file import read_metadata, read_tensors, write_tensors
from nufed.common.errors import RunError
from nufed.common.params import Params

CHECKPOINT = "checkpoint.safetensors"
FORMAT = "nufed-checkpoint-1"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round.

    Attributes:
        round: k, server updates done; 0 before the first.
        params: w_k.
        history: JSON values that the summary needs, e.g. the evaluations and costs so far.
    """

    round: int
    params: Params
    history: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, *, round: int, params: Mapping[str, Tensor], history: Mapping[str, Any]) -> None:  # noqa: A002 - the vocabulary's word
    """Replace the folder's checkpoint; a crash at any moment leaves the old one or the new one, whole.

    Args:
        folder: the run folder.
        round: k, server updates done.
        params: w_k.
        history: JSON values; NaN and infinities come back as None.
    """
    write_tensors(folder / CHECKPOINT, params, {"format": FORMAT, "round": round, "history": history})


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the folder's checkpoint, or None if it has none yet.

    Raises:
        RunError: it is torn or was not written by NuFed.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    params, metadata = read_tensors(path)
    round_done, history = _checked(path, metadata)
    return Checkpoint(round_done, params, history)


def checkpoint_round(folder: Path) -> int | None:
    """Return the round of the folder's checkpoint without reading its arrays, or None if it has none yet.

    Raises:
        RunError: it is torn or was not written by NuFed.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    return _checked(path, read_metadata(path))[0]


def _checked(path: Path, metadata: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    stored_format, round_done, history = (metadata.get(key) for key in ("format", "round", "history"))
    if stored_format != FORMAT or not isinstance(round_done, int) or not isinstance(history, dict):
        raise RunError(
            f"Expected a checkpoint of format {FORMAT} in {path}, but found format {stored_format!r}, "
            f"round {round_done!r}. Resume with the version of NuFed that wrote it, or start a new run."
        )
    return round_done, history
