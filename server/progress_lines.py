"""How a run is told in lines of text: what it is, how far it is, and what came out."""

from collections.abc import Mapping
from typing import Any

from nufed.common.config import RunConfig


def describe_run(config: RunConfig) -> str:
    """Return one line that says what is run."""
    data, method, federation = config.data, config.method, config.federation
    new = f" + {data.num_new_clients} new" if data.num_new_clients else ""
    clients = "client" if data.num_clients == 1 and not new else "clients"
    return (
        f"{data.source} ({data.partition}), {data.num_clients}{new} {clients}, {config.model.name}: "
        f"ν = {method.num_inner_steps}, {method.estimator}, α = {method.inner_lr:g}, β = {method.local_lr:g}, "
        f"τ = {method.num_local_steps}, r = {federation.participation_fraction:g}, seed {config.seed}"
    )


def last_evaluation(record: Mapping[str, Any]) -> str:
    """Return `accuracy 41.2 % → 87.3 %` (before and after adaptation) of a round that was evaluated, else nothing."""
    evaluation = record.get("evaluation")
    participating = evaluation and evaluation.get("participating")
    if not participating:
        return ""
    curve, name = participating["accuracy"], "accuracy"
    if curve is None:
        curve, name = participating["loss"], "loss"
    return f"{name} {number(curve[0], name)} → {number(curve[-1], name)}"


def round_line(record: Mapping[str, Any], num_rounds: int) -> str:
    """Return one line on a finished round: accuracy where it was evaluated, else the training loss."""
    trained = f"training loss {number(record.get('loss'), 'loss')}" if record.get("replied") else "no reply was used"
    shown = last_evaluation(record) or trained
    return f"round {record['round']}/{num_rounds}  {shown}  {record['seconds']:.1f} s"


def duration(seconds: float) -> str:
    """Return `45 s`, `12 min` or `3.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def number(value: float | None, measure: str) -> str:
    """Return a share such as an accuracy in percent, else four digits; `diverged` for what is no finite number."""
    if value is None or value != value:
        return "diverged"
    if measure == "loss":
        return f"{value:.4g}"
    from nufed.common.metrics import ACCURACY, further_metrics  # loads PyTorch, which is loaded once there are numbers

    known = {"accuracy": ACCURACY, **further_metrics()}.get(measure)
    return f"{100 * value:.1f} %" if known and known.is_share else f"{value:.4g}"
