"""The only codec between our records and Flower's: what crosses between server and clients.

    describe   server asks who is there           ClientDescription
    train      TrainRequest(w_k, k)         ->    TrainReply(w_k^i, N_i, metrics)
    evaluate   EvaluateRequest(w_k, k, end) ->    EvaluateReply(N_i, curves)
    statistics server asks before round 1         SiteStatistics (statistics_records, read_statistics)

Record names are Flower's own (`arrays`, `config`, `metrics`, `num-examples`), so that its strategies and
ClientApps understand ours and ours theirs. Arrays are checked here, once, before anything is computed with them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from nufed.common.data.as_new import Part
from nufed.common.errors import WireError
from nufed.common.examples import Group
from nufed.common.message_schema import (
    NUM_EXAMPLES,
    QUERY_REPLY,
    TRAIN_REPLY,
    CurveShape,
    MetricValue,
    check_client_id,
    checked_metrics,
    checked_statistics,
)
from nufed.common.model_arrays import arrays_to_params, check_params, params_to_arrays
from nufed.common.params import Params
from nufed.common.shots import SHOTS, checked_evaluation, checked_sizes
from nufed.common.statistics import Lists, SiteStatistics, StatisticsShape, check_consistent
from nufed.common.untrusted import shown

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
SERVER_ROUND, FINAL, ALL_METRICS, GROUPED = "server-round", "final", "all-metrics", "grouped"
HELD_OUT = "held-out"
"""Key of [number, total] in a trial's messages to a client that is held out: the part that it is asked about."""

FROZEN = "frozen"
"""Key of the frozen part's hash in the config of every message that a server sends."""

LAST_ROUND = 2**31 - 1
LONGEST_HASH = 128

STATISTICS = "statistics"
"""The query that asks a client for statistics of its columns."""


@dataclass(frozen=True)
class ClientDescription:
    """Who a client is; its answer to a `query` message.

    Attributes:
        client_id: stable name.
        group: `participating` or `new`.
        num_support: examples for training and adaptation.
        num_validation: examples for choosing hyper-parameters.
        num_test: examples for judging.
        is_grouped: whether some examples belong together and may not be divided; said in trials alone.
    """

    client_id: str
    group: Group
    num_support: int
    num_validation: int
    num_test: int
    is_grouped: bool = False

    def to_records(self) -> RecordDict:
        """Return the Flower records of this description.

        Raises:
            WireError: no server would take a client of this name.
        """
        config = ConfigRecord({"client-id": check_client_id(self.client_id), "group": self.group})
        if self.is_grouped:
            config[GROUPED] = 1
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
            client_id = check_client_id(config["client-id"])
        except KeyError as error:
            raise WireError(f"the description lacks {error}; the client runs another app or version") from error
        if group not in ("participating", "new"):
            raise WireError(f"group is {shown(group)}, expected 'participating' or 'new'")
        numbers = checked_metrics({name: sizes[name] for name in QUERY_REPLY if name in sizes}, QUERY_REPLY)
        support, validation, test = (cast("int", numbers[name]) for name in QUERY_REPLY)
        grouped = config.get(GROUPED) == 1
        return cls(client_id, "new" if group == "new" else "participating", support, validation, test, grouped)


@dataclass(frozen=True)
class TrainRequest:
    """The server's model and the round it is for.

    Attributes:
        params: w_k.
        round: k.
    """

    params: Params
    round: int

    def to_records(self) -> RecordDict:
        """Return the Flower records of this request."""
        return RecordDict({ARRAYS: params_to_arrays(self.params), CONFIG: ConfigRecord({SERVER_ROUND: self.round})})

    @classmethod
    def from_records(cls, records: RecordDict, reference: Mapping[str, Tensor] | None = None) -> "TrainRequest":
        """Read a request back.

        Args:
            records: of the server, which is not believed either.
            reference: a model of the client's architecture; None takes any arrays.

        Raises:
            WireError: it has no round, or no finite model like the client's.
        """
        return cls(_model(records, reference), _round(records))


@dataclass(frozen=True)
class EvaluateRequest(TrainRequest):
    """The server's model, to be adapted and judged.

    Attributes:
        shots: numbers of support examples to draw a further curve for.
        final: whether it is the model that the run ends with, of which a client may keep its adapted copy.
        all_metrics: whether to report all of the run's metrics, and what they are compared with, or the primary alone.
    """

    final: bool = False
    shots: tuple[int, ...] = ()
    all_metrics: bool = False

    def to_records(self) -> RecordDict:
        """Return the Flower records of this request."""
        records, asked = super().to_records(), {FINAL: self.final, ALL_METRICS: self.all_metrics}
        records.config_records[CONFIG].update({flag: 1 for flag, value in asked.items() if value})
        if self.shots:
            records.config_records[CONFIG][SHOTS] = list(self.shots)
        return records

    @classmethod
    def from_records(cls, records: RecordDict, reference: Mapping[str, Tensor] | None = None) -> "EvaluateRequest":
        """Read a request back; servers that do not say so send no final model, and know no metrics but accuracy.

        Args:
            records: of the server, which is not believed either.
            reference: a model of the client's architecture; None takes any arrays.

        Raises:
            WireError: it has no round, or no finite model like the client's.
        """
        said = list(records.config_records.values())
        final, all_metrics = (any(config.get(flag) == 1 for config in said) for flag in (FINAL, ALL_METRICS))
        return cls(_model(records, reference), _round(records), final, shots_asked_for(records), all_metrics)


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
    def from_records(cls, records: RecordDict, reference: Mapping[str, Tensor] | None = None) -> "TrainReply":
        """Read a reply back.

        Args:
            records: may come from anybody.
            reference: see `arrays_to_params`.

        Raises:
            WireError: arrays or metrics are missing or malformed.
        """
        arrays = _only_arrays(records)
        metrics = checked_metrics(_only_metrics(records), TRAIN_REPLY)
        num_examples = cast("int", metrics.pop(NUM_EXAMPLES))
        return cls(arrays_to_params(arrays, reference), num_examples, metrics)


@dataclass(frozen=True)
class EvaluateReply:
    """A client's adaptation curves.

    Attributes:
        num_examples: examples in the test split.
        metrics: `test-loss`, `test-accuracy`, `validation-…`: lists over s = 0..S, and more at a run's end
            (nufed.common.message_schema).
    """

    num_examples: int
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)

    def to_records(self) -> RecordDict:
        """Return the Flower records of this reply."""
        return RecordDict({METRICS: MetricRecord({NUM_EXAMPLES: self.num_examples, **self.metrics})})

    @classmethod
    def from_records(cls, records: RecordDict, shape: CurveShape | None = None) -> "EvaluateReply":
        """Read a reply back.

        Args:
            records: may come from anybody.
            shape: what the curves must be; None where any curves, or none, will do.

        Raises:
            WireError: metrics are missing or malformed.
        """
        metrics = checked_evaluation(_only_metrics(records), shape)
        return cls(cast("int", metrics.pop(NUM_EXAMPLES)), metrics)


def shots_asked_for(records: RecordDict) -> tuple[int, ...]:
    """Return the numbers of support examples that an evaluation's request asks further curves for.

    Raises:
        WireError: they are no distinct whole numbers above 0, or too many.
    """
    found = [config[SHOTS] for config in records.config_records.values() if SHOTS in config]
    return checked_sizes(found[0]) if found else ()


def statistics_records(site: SiteStatistics) -> RecordDict:
    """Return the Flower records of what a site tells of its columns."""
    return RecordDict({METRICS: MetricRecord({NUM_EXAMPLES: site.num_examples, **site.to_lists()})})


def read_statistics(records: RecordDict, shape: StatisticsShape, announced: int | None = None) -> SiteStatistics:
    """Read a site's statistics back.

    Args:
        records: may come from anybody.
        shape: what was asked for.
        announced: examples that the site said to have; None if it did not say.

    Raises:
        WireError: numbers are missing or malformed, or no examples can have them.
    """
    found = checked_statistics(_only_metrics(records), shape.lengths)
    site = SiteStatistics.from_lists(cast("int", found.pop(NUM_EXAMPLES)), cast("Lists", found), shape)
    check_consistent(site, shape, announced)
    return site


def frozen_of(records: RecordDict) -> str | None:
    """Return the hash of the server's frozen part in a message; None where it does not say.

    Raises:
        WireError: it is no text.
    """
    for config in records.config_records.values():
        if FROZEN in config:
            if isinstance(value := config[FROZEN], str) and len(value) <= LONGEST_HASH:
                return value
            raise WireError(f"{FROZEN}={shown(value)} is refused: expected the hash of the model's frozen part")
    return None


def held_out_part(records: RecordDict) -> Part | None:
    """Return the part of its examples that a held-out client is asked about; None where it takes part as usual.

    Raises:
        WireError: it is no part.
    """
    for config in records.config_records.values():
        if HELD_OUT in config:
            value = config[HELD_OUT]
            if isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value):
                return Part(*cast("list[int]", value))
            raise WireError(
                f"{HELD_OUT}={shown(value)} is refused: expected the number of a part and how many there are"
            )
    return None


def _only_arrays(records: RecordDict) -> ArrayRecord:
    found = list(records.array_records.values())
    if len(found) != 1:
        raise WireError(f"expected one record of arrays, got {len(found)}")
    return found[0]


def _model(records: RecordDict, reference: Mapping[str, Tensor] | None) -> Params:
    try:
        params = arrays_to_params(_only_arrays(records), reference)
        if reference is not None:
            check_params(params, reference, math.inf)
    except WireError as error:
        raise WireError(
            f"the server's model is not like this client's: {error}; start both with the same options and version"
        ) from error
    return params


def _only_metrics(records: RecordDict) -> MetricRecord:
    found = list(records.metric_records.values())
    if len(found) != 1:
        raise WireError(f"expected one record of metrics, got {len(found)}")
    return found[0]


def _round(records: RecordDict) -> int:
    for config in records.config_records.values():
        if isinstance(value := config.get(SERVER_ROUND), int) and not isinstance(value, bool):
            if 0 <= value <= LAST_ROUND:
                return value
            raise WireError(f"{SERVER_ROUND}={shown(value)} is refused: expected a whole number from 0 to {LAST_ROUND}")
    raise WireError(f"expected {SERVER_ROUND!r} in the message's config; send it with every train and evaluate message")
