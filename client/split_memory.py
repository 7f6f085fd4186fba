"""Which examples a client has trained on, from run to run and beyond restarts.

Which examples are for the test follows from the run's seed, the client's name and what the examples or their groups are
(common/data/membership.py), so that a row more or less moves no other. Naming groups, another test part, or a class of
few examples can move some from training to the test all the same. Such a client is judged on what the model was trained
on, and its numbers are better than it is. Whoever changes data between runs must hear of that.

What is remembered is a keyed hash of each example, in a file that only its owner may read. It stays on the client's
machine: with the key beside them, hashes of rows from a small range can be guessed.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nufed.common.config import Scalar
from nufed.common.data.membership import Keys
from nufed.common.data.private.load import is_slice
from nufed.common.data.private.rows import tell_here
from nufed.common.data.private.split import SplitHashes
from nufed.common.durable_file import replace_durably
from nufed.common.errors import ConfigError, RunError
from nufed.common.json_text import parse_object

FORMAT = "nufed-split-1"
ENDING = ".split"
"""Of the file beside a personal model."""

_KEY_BYTES, _HASH_BYTES = 16, 8


@dataclass
class SplitMemory:
    """What a client trained on so far; holds it between messages, and in a file if there is a path.

    Attributes:
        path: of the file; None remembers as long as the process runs.
        key: of the hashes.
        trained: for each way to split (seed, name, fractions): hash -> how many examples of that hash were trained on.
    """

    path: Path | None
    key: bytes
    trained: dict[str, Counter[str]]

    @classmethod
    def load(cls, path: Path | None) -> "SplitMemory":
        """Return what the file at `path` remembers; an empty memory where there is none.

        Raises:
            ConfigError: there is something else at that path, which would be replaced.
        """
        if path is None or not path.exists():
            return cls(path, os.urandom(_KEY_BYTES), {})
        try:
            stored = parse_object(path.read_text(encoding="utf-8"))
            trained = {way: Counter(dict(counts)) for way, counts in stored[FORMAT].items()}
            return cls(path, bytes.fromhex(stored["key"]), trained)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"Expected {path} to be what a client remembers of its examples (--state), but it is not. Name another "
                "file. One that does not exist is made, and nothing is known of earlier runs then."
            ) from error

    def num_moved(self, way: str, split: SplitHashes) -> int:
        """Return how many examples of the test split were trained on before, equal ones counted one by one."""
        before = self.trained.get(way, Counter())
        support, test = self._counts(split.support), self._counts(split.test)
        # Of equal examples, as many as are in training now may be those that were in training then.
        return sum(min(count, max(0, before[name] - support[name])) for name, count in test.items())

    def remember(self, way: str, split: SplitHashes) -> None:
        """Note that the support split is trained on; what cannot be written is told, and kept in this process."""
        known, support = self.trained.setdefault(way, Counter()), self._counts(split.support)
        if all(known[name] >= count for name, count in support.items()):
            return
        known |= support
        self.trained[way] = known
        if self.path is None:
            return
        content = {"key": self.key.hex(), FORMAT: self.trained}
        try:
            replace_durably(self.path, lambda partial: _write_for_owner(partial, json.dumps(content)))
        except RunError as error:
            tell_here("which examples were trained on is not remembered beyond this process: %s", error)

    def _counts(self, hashes: "tuple[bytes, ...] | Keys") -> Counter[str]:
        return Counter(hashlib.blake2b(bytes(one), key=self.key, digest_size=_HASH_BYTES).hexdigest() for one in hashes)


def named_file(node_config: Mapping[str, Scalar], option: str) -> Path | None:
    """Return the file that an option of a client's node names, which need not be there yet; None without the option.

    Raises:
        ConfigError: its folder does not exist.
    """
    if not (given := node_config.get(option)):
        return None
    path = Path(str(given)).expanduser()
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"Expected --{option} to name a file in a folder that exists, got {path}. Make the folder.")
    return path


def state_path(node_config: Mapping[str, Scalar]) -> Path | None:
    """Return where a deployed client remembers: the file of `state`, or beside its personal model; else None.

    Raises:
        ConfigError: the folder does not exist.
    """
    if path := named_file(node_config, "state"):
        return path
    if personal := node_config.get("personal-model"):
        return Path(str(personal)).expanduser().with_suffix(ENDING)
    return None


def forgets(node_config: Mapping[str, Scalar]) -> bool:
    """Return whether a client with examples of its own has no file to remember them in; slices are for trials."""
    return state_path(node_config) is None and not is_slice(str(node_config.get("data", "")))


def _write_for_owner(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
