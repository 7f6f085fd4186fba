"""How a run is told in lines of text: what it is, how far it is, and what came out."""

import math
from collections.abc import Mapping
from typing import Any

from nufed.common.config import MethodConfig, RunConfig
from nufed.common.metric_looks import look_of
from nufed.common.untrusted import printable


def describe_run(config: RunConfig) -> str:
    """Return one line that says what is run."""
    data, method, federation = config.data, config.method, config.federation
    new = f" + {data.num_new_clients} new" if data.num_new_clients else ""
    clients = "client" if data.num_clients == 1 and not new else "clients"
    return (
        f"{data.source} ({data.partition}), {data.num_clients}{new} {clients}, {config.model.name}: "
        f"ν = {method.num_inner_steps}, {method.estimator}, α = {_sizes(method)}, β = {method.local_lr:g}, "
        f"τ = {method.num_local_steps}, r = {federation.participation_fraction:g}, seed {config.seed}"
        f"{f', judged by {judges} of each group' if (judges := config.evaluation.num_clients) else ''}"
        f"{', secure aggregation' if config.privacy.secure_aggregation else ''}{_of_stragglers(config)}"
    )


def _sizes(method: MethodConfig) -> str:
    """Return α, and how it falls along the ν steps; or the list of sizes."""
    if method.inner_schedule in ("linear", "cosine"):
        return f"{method.inner_lr:g} ({method.inner_schedule})"
    return f"{method.inner_lr:g}" if method.inner_schedule == "constant" else method.inner_schedule


def _of_stragglers(config: RunConfig) -> str:
    """Return what is done about slow clients; nothing where all are waited for."""
    federation = config.federation
    if federation.mode == "buffered":
        at_work = f", {federation.concurrency} at work" if federation.concurrency else ""
        return f", buffered: a step after {federation.buffer_size} replies{at_work}"
    return f", over-selection {federation.over_selection:g}" if federation.over_selection else ""


def last_evaluation(record: Mapping[str, Any]) -> str:
    """Return `accuracy 41.2 % → 87.3 %` (before and after adaptation) of a round that was evaluated, else nothing."""
    evaluation = record.get("evaluation")
    participating = evaluation and evaluation.get("participating")
    if not participating:
        return ""
    curve = mean_of(participating)
    return f"{measure_of(participating)} {said(participating, 0)} → {said(participating, len(curve) - 1)}"


def measure_of(group: Mapping[str, Any]) -> str:
    """Return what a group of summary.json is judged by; records of others may name only its numbers."""
    return str(group.get("measure") or ("accuracy" if group.get("accuracy") else "loss"))


def mean_of(group: Mapping[str, Any], measure: str = "") -> list[float | None]:
    """Return the means over clients after s = 0..S steps of a metric, or of the measure of a group of summary.json."""
    name = measure or measure_of(group)
    found: list[float | None] | None = group.get(name) if name in ("loss", "accuracy") else None
    return found if found is not None else list((group.get("metrics") or {}).get(f"test-{name}") or ())


def measures_of(group: Mapping[str, Any]) -> list[str]:
    """Return what a group of summary.json is judged by: the measure first, then metrics, but for single outputs'."""
    names = [key.removeprefix("test-") for key in group.get("metrics") or {} if key.startswith("test-")]
    whole = [name for name in names if not name.rpartition("-")[2].isdigit()]
    accuracy = ["accuracy"] if group.get("accuracy") else []
    return list(dict.fromkeys([measure_of(group), *accuracy, *whole]))


def said(group: Mapping[str, Any], step: int, measure: str = "") -> str:
    """Return a group's mean after a step as it is shown; `undefined` where no client has such a number."""
    name = measure or measure_of(group)
    return _number_of(mean_of(group, name)[step], name, group, step, any_diverged=False)


def worst_said(group: Mapping[str, Any], step: int, measure: str = "") -> str:
    """Return the mean of a group's worst tenth after a step as it is shown; `diverged` where one client has."""
    name = measure or measure_of(group)
    curve = _details(group, name).get("worst_decile")
    is_withheld = curve and all(value is None or value != value for value in curve)
    if not curve or (is_withheld and not any(group.get("num_diverged") or ())):
        return ""
    return _number_of(curve[step], name, group, step, any_diverged=True)


def num_undefined(group: Mapping[str, Any], step: int, measure: str = "") -> int:
    """Return for how many of a group's clients a metric is undefined after a step."""
    counts = _details(group, measure or measure_of(group)).get("num_undefined")
    return int(counts[step]) if counts else 0


def _details(group: Mapping[str, Any], measure: str) -> Mapping[str, Any]:
    """Return how a metric is spread over a group's clients; the measure's numbers are the group's own."""
    return group if measure == measure_of(group) else (group.get("details") or {}).get(measure) or {}


def _number_of(value: float | None, name: str, group: Mapping[str, Any], step: int, *, any_diverged: bool) -> str:
    if value is None or value != value:
        counts = group.get("num_diverged")
        has_diverged = counts is None or counts[step] >= (1 if any_diverged else group["num_clients"])
        return "diverged" if has_diverged else "undefined"
    return number(value, name)


def round_line(record: Mapping[str, Any], num_rounds: int) -> str:
    """Return one line on a finished round: accuracy where it was evaluated, else the training loss."""
    trained = f"training loss {number(record.get('loss'), 'loss')}" if record.get("replied") else "no reply was used"
    if record.get("replied") != 0 and record.get("diverged", 0) is None:
        trained = "done"  # the loss is withheld
    shown = last_evaluation(record) or trained
    spent = f"  ε = {record['epsilon']:.3g}" if record.get("epsilon") is not None else ""
    secure = f"  {line}" if (line := secure_line(record)) else ""
    late = f"  {line}" if (line := straggler_line(record)) else ""
    return f"round {record['round']}/{num_rounds}  {shown}{spent}{secure}{late}  {record['seconds']:.1f} s"


def straggler_line(record: Mapping[str, Any]) -> str:
    """Return `2 dropped, staleness 1.5 (at most 4), 12.0 s simulated` of a round's record, as far as it says so."""
    told = []
    if record.get("dropped"):
        told.append(f"{record['dropped']} dropped")
    if buffer := record.get("buffer"):
        told.append(f"staleness {buffer['mean_staleness']:.1f} (at most {buffer['max_staleness']})")
    if record.get("simulated_seconds") is not None:
        told.append(f"{record['simulated_seconds']:.1f} s simulated")
    return ", ".join(told)


def privacy_line(summary: Mapping[str, Any]) -> str:
    """Return a line on what a run's models have revealed; empty without client-level differential privacy."""
    told = summary.get("privacy")
    if not told:
        return ""
    if told.get("warning"):
        return str(told["warning"])
    spent = "∞" if told["epsilon"] is None or told["epsilon"] == math.inf else f"{told['epsilon']:.4g}"
    budget = f" of {told['budget']:g}" if told["budget"] else ""
    rounds = f"{told['rounds_charged']} round{'s' if told['rounds_charged'] != 1 else ''}"
    return f"client-level ε = {spent}{budget} at δ = {told['delta']:.3g}, of {rounds}"


def secure_line(record: Mapping[str, Any]) -> str:
    """Return `secure sum of 9 of 10 models, lost: 1 (train)` of a round's record; nothing without secure aggregation.

    Of a round that failed, it is the reason.
    """
    secure = record.get("secure_aggregation")
    if not secure:
        return ""
    if secure["reason"]:
        return f"no secure sum: {printable(str(secure['reason']))}"
    by_stage = ", ".join(f"{count} ({stage.replace('_', '-')})" for stage, count in secure["dropped"].items())
    return f"secure sum of {secure['summed']} of {secure['cohort']} models" + (
        f", lost: {by_stage}" if by_stage else ""
    )


def duration(seconds: float) -> str:
    """Return `45 s`, `12 min` or `3.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def number(value: float | None, measure: str) -> str:
    """Return a share such as an accuracy in percent, else four digits; `diverged` for what is no finite number."""
    if value is None or value != value:
        return "diverged"
    return f"{100 * value:.1f} %" if look_of(measure).is_share else f"{value:.4g}"
