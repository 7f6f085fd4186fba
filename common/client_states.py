"""Files of what clients keep between rounds: one client's last versions, by the rounds that they were left in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nufed.common.durable_file import is_sealed, read_tensors, write_tensors
from nufed.common.errors import RunError
from nufed.common.params import Params

RUN_ID = "run-id"
"""In the config of a server's messages: which run they are of, for clients that keep something from round to round."""

FORMAT = "nufed-client-state-1"


@dataclass(frozen=True)
class StateFile:
    """A client's file.

    Attributes:
        versions: round -> what the client kept after it.
        belongs: JSON values that say whose it is.
    """

    versions: Mapping[int, Params]
    belongs: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replace the file; a crash leaves the old one or the new one, whole.

        Raises:
            RunError: it cannot be written.
        """
        arrays: dict[str, Tensor] = {}
        for number, kept in self.versions.items():
            arrays |= {f"{number}/{name}": tensor for name, tensor in kept.items()}
        metadata = {"format": FORMAT, "rounds": list(self.versions), "belongs": dict(self.belongs)}
        write_tensors(path, arrays, metadata, sealed=True)

    @classmethod
    def read(cls, path: Path) -> "StateFile":
        """Return what `write` wrote.

        Raises:
            RunError: the file is torn or changed, or another one.
        """
        arrays, metadata = read_tensors(path)
        rounds, belongs = metadata.get("rounds"), metadata.get("belongs")
        if metadata.get("format") != FORMAT or not isinstance(rounds, list) or not isinstance(belongs, dict):
            raise RunError(f"Expected what a client keeps between rounds in {path}, but it is another file.")
        if not is_sealed(path):
            raise RunError(f"Expected the checksum of a client's state in {path}, but it has none: it was changed.")
        versions: dict[int, Params] = {int(number): {} for number in rounds}
        for name, tensor in arrays.items():
            number, _, own = name.partition("/")
            versions[int(number)][own] = tensor
        return cls(versions, belongs)
