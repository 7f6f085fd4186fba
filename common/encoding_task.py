"""How a client encodes its own model where the server sees no more than the sum: with secure aggregation.

The server adds up what it cannot read, so each client does to its own model what the server does to replies otherwise:
it checks it, encodes it as integers (nufed.common.fixed_point) and weighs it. The sum then has the same bits.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from nufed.common.errors import WireError
from nufed.common.fixed_point import MAX_GROWTH, Encoding, ModelEncoding, Sums
from nufed.common.privacy.clipping import ClippedUpdateEncoding
from nufed.common.untrusted import shown

_PREFIX = "secure-"
_HIGHEST_WEIGHT = 2**40


@dataclass(frozen=True)
class EncodingTask:
    """How a client's model becomes integers in one round.

    Attributes:
        total_weight: bound of the sum of weights, which the grid follows from.
        highest_weight: what a client counts at most; it counts as many as it has examples, 1 with uniform weights.
        max_growth: see `nufed.common.fixed_point.fixed_point_for`.
        clip: C, to which updates are clipped with client-level differential privacy; 0 encodes the model itself.
    """

    total_weight: int
    highest_weight: int
    max_growth: float
    clip: float = 0.0

    def to_config(self) -> dict[str, int | float]:
        """Return the task as a message's config carries it."""
        return {_key(name): value for name, value in asdict(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "EncodingTask":
        """Read a task back.

        Raises:
            WireError: a number is missing or out of range.
        """
        found: dict[str, int | float] = {}
        for each in fields(cls):
            value = config.get(_key(each.name))
            (low, high), kinds = _RANGES[each.name], (int,) if each.type is int else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
                raise WireError(
                    f"{_key(each.name)}={shown(value)} is refused: expected a number of {low:g} to {high:g}"
                )
            found[each.name] = value
        return cls(**found)  # type: ignore[arg-type] # of the fields' types, as was checked

    @property
    def digest(self) -> bytes:
        """SHA-256 of the task."""
        return hashlib.sha256(repr(sorted(self.to_config().items())).encode()).digest()

    def encoding(self, sent: Mapping[str, Tensor]) -> Encoding:
        """Return the encoding of a round that began with `sent`."""
        if self.clip:
            return ClippedUpdateEncoding(sent, self.clip)
        return ModelEncoding(sent, self.total_weight, self.max_growth)

    def sizes(self, sent: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many integers stand for each array; an update has none for counters."""
        return {name: w.numel() for name, w in sent.items() if not self.clip or w.is_floating_point()}

    def encode(self, sent: Mapping[str, Tensor], params: Mapping[str, Tensor], num_examples: int) -> tuple[Sums, int]:
        """Return a client's model as integers, and its weight, which is in them.

        Args:
            sent: w_k.
            params: w_k^i.
            num_examples: N_i; of no matter with uniform weights.

        Raises:
            WireError: the model is not finite, or beyond the limits; or there are no examples.
        """
        sums, encoding = Sums(), self.encoding(sent)
        weight = 1 if self.highest_weight == 1 else min(num_examples, self.highest_weight)
        if weight < 1:
            raise WireError("a client without examples has no weight in a mean")
        encoding.add(sums, params, weight)
        return sums, weight


_RANGES: dict[str, tuple[float, float]] = {
    "total_weight": (1, _HIGHEST_WEIGHT),
    "highest_weight": (1, _HIGHEST_WEIGHT),
    "max_growth": (1, MAX_GROWTH),
    "clip": (0, 1e9),
}


def model_digest(params: Mapping[str, Tensor]) -> bytes:
    """Return SHA-256 of a model: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(params.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(repr((name, str(values.dtype), tuple(values.shape))).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _key(name: str) -> str:
    return _PREFIX + name.replace("_", "-")
