"""What summary.json and the rounds' records say of evaluations."""

import math
from collections.abc import Mapping
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.examples import Group
from nufed.server.adaptation_curves import GroupCurves, rounds_to_target
from nufed.server.curve_means import Curve
from nufed.server.history import History
from nufed.server.outcome import MOST_DIVERGED, FinalEvaluation, num_judges


def progress_curve(group: GroupCurves) -> Curve:
    """Return the curve that progress is told by: NaN where most clients have diverged, so that it reaches no target."""
    most = MOST_DIVERGED * group.num_clients
    return tuple(
        math.nan if diverged > most else value for value, diverged in zip(group.mean, group.num_diverged, strict=True)
    )


def run_summary(
    config: RunConfig,
    round: int,  # noqa: A002 - the vocabulary's word
    history: History,
    groups: Mapping[Group, GroupCurves | None],
    evaluation: FinalEvaluation | None,
) -> dict[str, Any]:
    """Return the content of summary.json but for how the run ended."""
    step = config.evaluation.primary_step
    judged = next((group for group in groups.values() if group is not None), None)
    measure, sign = (judged.measure, judged.sign) if judged else ("", 1.0)
    target = config.evaluation.target(measure)
    at_step = [(done, sign * curve[step]) for done, curve in history.evaluations]
    totals = vars(history.totals)
    return {
        "status": "complete",
        "rounds": round,
        "rounds_without_reply": totals["rounds_without_reply"],
        "primary_step": step,
        "num_inner_steps": config.method.num_inner_steps,
        **{group: curves_json(curves) for group, curves in groups.items()},
        "primary_metric": measure or None,
        "target_metric": target or None,
        "target_accuracy": config.evaluation.target_accuracy or (target if measure == "accuracy" else 0) or None,
        "rounds_to_target": rounds_to_target(at_step, sign * target) if target else None,
        "costs": {name: totals[name] for name in ("gradient_evaluations", "hvps", "bytes_up", "bytes_down")},
        "problems": {name: totals[name] for name in ("rejected", "failed", "missing")},
        **_of_stragglers(config, totals),
        "final_evaluation": evaluation.to_json() if evaluation else None,
        **_sample(config),
        "seconds": totals["seconds"],
    }


def _of_stragglers(config: RunConfig, totals: Mapping[str, Any]) -> dict[str, Any]:
    """Return how much work was dropped and how long the rounds took in simulated time, where either can be."""
    federation = config.federation
    can_drop = federation.over_selection > 0 or federation.mode == "buffered"
    dropped = {"dropped": totals["dropped"]} if can_drop else {}
    return {**dropped, **({"simulated_seconds": totals["simulated_seconds"]} if federation.client_speeds else {})}


def _sample(config: RunConfig) -> dict[str, Any]:
    """Return how many clients of each group judge the models, of how many, where these are not all."""
    in_all = {"participating": config.data.num_clients, "new": config.data.num_new_clients}
    sampled = {group: number for group, number in num_judges(config).items() if number < in_all[group]}
    told = {group: {"asked": number, "of": in_all[group]} for group, number in sampled.items()}
    return {"evaluation_sample": told} if told else {}


def curves_json(curves: GroupCurves | None) -> dict[str, Any] | None:
    """Return a group's curves as JSON values; None where nobody answered."""
    return curves.to_json() if curves else None
