"""The codec of the messages of a round with secure aggregation; beside the model they carry the protocol's bytes.

    query.secure_identity   nothing                   ->    public key of a client, where no roster is signed
    query.secure_keys       task, roster              ->    AdvertisedKeys
    query.secure_shares     CohortKeys                ->    EncryptedShares
    train                   w_k, DeliveredShares      ->    MaskedReply(integers under masks, N_i, metrics)
    query.secure_confirm    Survivors                 ->    Confirmation
    query.secure_unmask     ConfirmedSurvivors        ->    RevealedShares

Record names are those of `nufed.common.wire`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from nufed.common.errors import WireError
from nufed.common.message_schema import NUM_EXAMPLES, TRAIN_REPLY, MetricValue, checked_metrics
from nufed.common.model_arrays import arrays_to_params, params_to_arrays
from nufed.common.wire import ARRAYS, CONFIG, METRICS

IDENTITY, KEYS, SHARES, TRAIN, CONFIRM, UNMASK = (
    "secure_identity",
    "secure_keys",
    "secure_shares",
    "train",
    "secure_confirm",
    "secure_unmask",
)
"""The stages; each but training is a query of this name."""

TOLD, ROSTER, SIGNED = "secure-told", "secure-roster", "secure-roster-signed"
"""Keys, in a message's config, of what the protocol says, of the roster and of whether an authority signed it."""

LARGEST = 64 * 2**20
"""Bytes of the protocol in one message at most."""


def told_records(told: bytes, more: Mapping[str, int | float | str | bytes] | None = None) -> RecordDict:
    """Return the records of a message that carries what the protocol says."""
    return RecordDict({CONFIG: ConfigRecord({TOLD: told, **(more or {})})})


def read_told(records: RecordDict, key: str = TOLD) -> bytes:
    """Return what the protocol says in a message.

    Raises:
        WireError: nothing, or too much.
    """
    config = records.config_records.get(CONFIG, ConfigRecord())
    told = config.get(key)
    if not isinstance(told, bytes) or len(told) > LARGEST:
        raise WireError(f"expected up to {LARGEST} bytes of secure aggregation under {key!r}; update the other side")
    return told


def is_secure(records: RecordDict) -> bool:
    """Return whether a message asks for a masked model."""
    return TOLD in records.config_records.get(CONFIG, ConfigRecord())


@dataclass(frozen=True)
class MaskedReply:
    """A client's model as integers under masks.

    Attributes:
        told: what the protocol says of them.
        sums: flat int64 tensors by the names of the model's arrays.
        num_examples: N_i, which the client's own mask does not hide.
        metrics: as in a TrainReply.
    """

    told: bytes
    sums: dict[str, Tensor]
    num_examples: int
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)

    def to_records(self) -> RecordDict:
        """Return the Flower records of this reply."""
        records = told_records(self.told)
        records[ARRAYS] = params_to_arrays(self.sums)
        records[METRICS] = MetricRecord({NUM_EXAMPLES: self.num_examples, **self.metrics})
        return records

    @classmethod
    def from_records(cls, records: RecordDict, sizes: Mapping[str, int]) -> "MaskedReply":
        """Read a reply back.

        Args:
            records: may come from anybody.
            sizes: how many integers each array must have.

        Raises:
            WireError: arrays, metrics or what the protocol says are missing or malformed.
        """
        reference = {name: torch.empty(size, dtype=torch.int64, device="meta") for name, size in sizes.items()}
        sums = arrays_to_params(records.array_records.get(ARRAYS, ArrayRecord()), reference)
        metrics = checked_metrics(records.metric_records.get(METRICS, MetricRecord()), TRAIN_REPLY)
        return cls(read_told(records), sums, cast("int", metrics.pop(NUM_EXAMPLES)), metrics)
