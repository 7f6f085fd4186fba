"""The only codec between our records and Flower's: what crosses between server and clients.

    describe   server asks who is there           ClientDescription
    train      TrainRequest(w_k, k)         ->    TrainReply(w_k^i, N_i, metrics)
    evaluate   EvaluateRequest(w_k, k, end) ->    EvaluateReply(N_i, curves)

Record names are Flower's own (`arrays`, `config`, `metrics`, `num-examples`), so that its strategies and
ClientApps understand ours and ours theirs. Arrays are checked here, once, before anything is computed with them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from nufed.common.errors import WireError
from nufed.common.examples import Group
from nufed.common.npy import from_npy, to_npy
from nufed.common.params import Params, largest_magnitude

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
NUMPY = "numpy.ndarray"
"""Flower's name for the bytes of a `.npy` file."""

NUM_EXAMPLES, SERVER_ROUND, FINAL = "num-examples", "server-round", "final"
# What NumPy's reader raises on bytes that did not come from NumPy's writer.
_MALFORMED = (
    BadZipFile,
    EOFError,
    MemoryError,
    OSError,
    RecursionError,
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
)
MetricValue = int | float | list[int] | list[float]


def params_to_arrays(params: Mapping[str, Tensor]) -> ArrayRecord:
    """Return Flower arrays with the content of `params`, in their order."""
    return ArrayRecord({name: _to_array(tensor) for name, tensor in params.items()})


def arrays_to_params(arrays: ArrayRecord) -> Params:
    """Return tensors that own the content of Flower arrays.

    Raises:
        WireError: an array is not a plain NumPy array.
    """
    result: Params = {}
    for name, array in arrays.items():
        try:
            as_announced = from_npy(array.data, array.dtype, array.shape) if array.stype == NUMPY else None
            result[name] = torch.from_numpy(np.array(array.numpy())) if as_announced is None else as_announced
        except _MALFORMED as error:
            raise WireError(f"array {name!r} cannot be decoded ({error}); send NumPy arrays without objects") from error
    return result


def check_params(
    params: Mapping[str, Tensor], reference: Mapping[str, Tensor], limit: float | Mapping[str, float]
) -> None:
    """Refuse parameters that are not a finite model of the reference's names, shapes and types.

    Args:
        params: what came.
        reference: what was sent.
        limit: largest magnitude accepted, for all arrays or by name.

    Raises:
        WireError: with the first difference.
    """
    if missing := [name for name in reference if name not in params]:
        raise WireError(f"expected array {missing[0]!r}, which is missing (and {len(missing) - 1} more)")
    if extra := [name for name in params if name not in reference]:
        raise WireError(f"array {extra[0]!r} was not expected (and {len(extra) - 1} more)")
    for name, expected in reference.items():
        got = params[name]
        if got.shape != expected.shape:
            raise WireError(f"array {name!r} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
        if got.dtype != expected.dtype:
            raise WireError(f"array {name!r} has type {got.dtype}, expected {expected.dtype}")
        largest, allowed = largest_magnitude(got), limit[name] if isinstance(limit, Mapping) else limit
        if not math.isfinite(largest):
            raise WireError(f"array {name!r} contains NaN or infinite values")
        if largest > allowed:
            raise WireError(f"array {name!r} has an element of magnitude {largest:.3g}, beyond the limit {allowed:.3g}")


@dataclass(frozen=True)
class ClientDescription:
    """Who a client is; its answer to a `query` message.

    Attributes:
        client_id: stable name.
        group: `participating` or `new`.
        num_support: examples for training and adaptation.
        num_validation: examples for choosing hyper-parameters.
        num_test: examples for judging.
    """

    client_id: str
    group: Group
    num_support: int
    num_validation: int
    num_test: int

    def to_records(self) -> RecordDict:
        """Return the Flower records of this description."""
        config = ConfigRecord({"client-id": self.client_id, "group": self.group})
        sizes = {"num-support": self.num_support, "num-validation": self.num_validation, "num-test": self.num_test}
        return RecordDict({CONFIG: config, METRICS: MetricRecord(dict(sizes))})

    @classmethod
    def from_records(cls, records: RecordDict) -> "ClientDescription":
        """Read a description back.

        Raises:
            WireError: it is not one.
        """
        try:
            config, sizes = records.config_records[CONFIG], records.metric_records[METRICS]
            group = config["group"]
            if group not in ("participating", "new"):
                raise WireError(f"group is {group!r}, expected 'participating' or 'new'")
            numbers = [_count(sizes, key) for key in ("num-support", "num-validation", "num-test")]
            return cls(str(config["client-id"]), "new" if group == "new" else "participating", *numbers)
        except KeyError as error:
            raise WireError(f"the description lacks {error}; the client runs another app or version") from error


@dataclass(frozen=True)
class TrainRequest:
    """The server's model and the round it is for."""

    params: Params
    round: int

    def to_records(self) -> RecordDict:
        """Return the Flower records of this request."""
        return RecordDict({ARRAYS: params_to_arrays(self.params), CONFIG: ConfigRecord({SERVER_ROUND: self.round})})

    @classmethod
    def from_records(cls, records: RecordDict) -> "TrainRequest":
        """Read a request back.

        Raises:
            WireError: it has no arrays or no round.
        """
        return cls(arrays_to_params(_only_arrays(records)), _round(records))


@dataclass(frozen=True)
class EvaluateRequest(TrainRequest):
    """The server's model, to be adapted and judged.

    Attributes:
        final: whether it is the model that the run ends with, of which a client may keep its adapted copy.
    """

    final: bool = False

    def to_records(self) -> RecordDict:
        """Return the Flower records of this request."""
        records = super().to_records()
        if self.final:
            records.config_records[CONFIG][FINAL] = 1
        return records

    @classmethod
    def from_records(cls, records: RecordDict) -> "EvaluateRequest":
        """Read a request back; servers that do not say so send no final model.

        Raises:
            WireError: it has no arrays or no round.
        """
        final = any(config.get(FINAL) == 1 for config in records.config_records.values())
        return cls(arrays_to_params(_only_arrays(records)), _round(records), final)


@dataclass(frozen=True)
class TrainReply:
    """A client's model after its local steps.

    Attributes:
        params: w_k^i.
        num_examples: N_i, examples in the support split.
        metrics: numbers by kebab-case name, e.g. `loss`, `gradient-evaluations`.
    """

    params: Params
    num_examples: int
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)

    def to_records(self) -> RecordDict:
        """Return the Flower records of this reply."""
        metrics = MetricRecord({NUM_EXAMPLES: self.num_examples, **self.metrics})
        return RecordDict({ARRAYS: params_to_arrays(self.params), METRICS: metrics})

    @classmethod
    def from_records(cls, records: RecordDict) -> "TrainReply":
        """Read a reply back.

        Raises:
            WireError: arrays or `num-examples` are missing or malformed.
        """
        arrays = _only_arrays(records)
        num_examples, metrics = _metrics(records)
        return cls(arrays_to_params(arrays), num_examples, metrics)


@dataclass(frozen=True)
class EvaluateReply:
    """A client's adaptation curves.

    Attributes:
        num_examples: examples in the test split.
        metrics: `test-loss`, `test-accuracy` (absent for regression), `validation-loss`, `validation-accuracy`:
            lists over s = 0..S.
    """

    num_examples: int
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)

    def to_records(self) -> RecordDict:
        """Return the Flower records of this reply."""
        return RecordDict({METRICS: MetricRecord({NUM_EXAMPLES: self.num_examples, **self.metrics})})

    @classmethod
    def from_records(cls, records: RecordDict) -> "EvaluateReply":
        """Read a reply back.

        Raises:
            WireError: `num-examples` is missing or malformed.
        """
        return cls(*_metrics(records))


def _to_array(tensor: Tensor) -> Array:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Array(dtype=dtype, shape=tuple(tensor.shape), stype=NUMPY, data=to_npy(tensor))


def _only_arrays(records: RecordDict) -> ArrayRecord:
    found = list(records.array_records.values())
    if len(found) != 1:
        raise WireError(f"expected one record of arrays, got {len(found)}")
    return found[0]


def _round(records: RecordDict) -> int:
    for config in records.config_records.values():
        if isinstance(value := config.get(SERVER_ROUND), int):
            return value
    raise WireError(f"expected {SERVER_ROUND!r} in the message's config; send it with every train and evaluate message")


def _metrics(records: RecordDict) -> tuple[int, dict[str, MetricValue]]:
    found = list(records.metric_records.values())
    if len(found) != 1:
        raise WireError(f"expected one record of metrics, got {len(found)}")
    metrics: dict[str, MetricValue] = dict(found[0])
    num_examples = _count(metrics, NUM_EXAMPLES)
    del metrics[NUM_EXAMPLES]
    return num_examples, metrics


def _count(metrics: Mapping[str, MetricValue], key: str) -> int:
    if key not in metrics:
        raise WireError(f"expected {key!r} among the metrics, got {', '.join(map(repr, metrics)) or 'none'}")
    value = metrics[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise WireError(f"{key}={value!r} is refused: expected a whole number from 0 to {2**31 - 1}")
    return value
