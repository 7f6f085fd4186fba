"""A round's line of metrics.jsonl, and what events say of rounds and evaluations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from nufed.common.events import RoundClosed
from nufed.common.message_schema import MetricValue
from nufed.server.client_curves import ClientCurves
from nufed.server.curve_means import Curve
from nufed.strategy.results import RoundResult

_CURVES = ("accuracy", "loss")
_OF_RECORD = {each.name for each in fields(RoundClosed)} - {"run", "time", "num_rounds"}


def round_record(result: RoundResult, evaluation: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """Return a round's line of metrics.jsonl."""
    per_client = result.client_metrics
    return {
        "round": result.round,
        **vars(result.counts),
        "problems": dict(result.problems),
        "loss": result.mean_metrics.get("loss"),
        "diverged": result.num_diverged,
        "loss_weighted": result.weighted_metrics.get("loss"),
        "clients": {client_id: dict(metrics) for client_id, metrics in per_client.items()},
        "gradient_evaluations": _total(per_client, "gradient-evaluations"),
        "hvps": _total(per_client, "hvps"),
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "seconds": seconds,
        "simulated_seconds": result.simulated_seconds,
        **({"buffer": asdict(result.buffer)} if result.buffer else {}),
        "evaluation": evaluation,
        **({"secure_aggregation": asdict(result.secure)} if result.secure else {}),
    }


def event_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `RoundClosed` says of a round's line: all but the clients' own numbers."""
    return {name: value for name, value in record.items() if name in _OF_RECORD}


def group_metrics(group: Mapping[str, Any] | None) -> dict[str, tuple[float, ...]]:
    """Return metric -> mean curve of a group's part of summary.json."""
    if not group:
        return {}
    curves = {name: group[name] for name in _CURVES if group.get(name)}
    further = {
        name.removeprefix("test-"): curve
        for name, curve in (group.get("metrics") or {}).items()
        if name.startswith("test-")
    }
    return {name: tuple(curve) for name, curve in {**curves, **further}.items()}


def client_scores(curves: Iterable[ClientCurves], step: int) -> dict[str, dict[str, Any]]:
    """Return what `Evaluated` says of each client: its group, and its metrics before and after `step` steps."""
    return {client.client_id: {"group": client.group, **_ends(_client_metrics(client), step)} for client in curves}


def _client_metrics(client: ClientCurves) -> dict[str, Curve]:
    known = {"accuracy": client.test_accuracy, "loss": client.test_loss}
    further = {name.removeprefix("test-"): curve for name, curve in client.metrics.items() if name.startswith("test-")}
    return {name: curve for name, curve in {**known, **further}.items() if curve is not None}


def _ends(curves: Mapping[str, Sequence[float]], step: int) -> dict[str, dict[str, float]]:
    return {
        "before": {name: curve[0] for name, curve in curves.items()},
        "after": {name: curve[step] for name, curve in curves.items()},
    }


def _total(per_client: Mapping[str, Mapping[str, MetricValue]], key: str) -> int:
    """Return the sum of a count over clients; those of other apps may not report it."""
    return sum(count for metrics in per_client.values() if isinstance(count := metrics.get(key), int))
