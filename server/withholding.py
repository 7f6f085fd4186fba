"""What a run writes and tells of its rounds, evaluations and end, without what ε does not cover (docs/privacy.md)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.errors import BudgetSpentError, DivergedError, NufedError
from nufed.common.message_schema import NUM_EXAMPLES
from nufed.common.privacy.publishing import IN_THE_LOG, Publication
from nufed.common.privacy.rules import SMALLEST_COHORT
from nufed.server.adaptation_curves import GroupCurves
from nufed.server.client_curves import ClientCurves

OF_PARTICIPANTS = ("sampled", "replied", "rejected", "failed", "missing", "dropped", "gradient_evaluations", "hvps")
"""A round's numbers that tell how many clients took part."""
_BYTES = ("bytes_up", "bytes_down")
_LOSSES = ("loss", "growth", "cg-residual", "inner-gradient")
_OF_EXAMPLES = (NUM_EXAMPLES, "with-replacement", "seconds", "epsilon")


def shown_record(record: Mapping[str, Any], publication: Publication) -> dict[str, Any]:
    """Return a round's line of metrics.jsonl without what is withheld: None in its place, or nothing."""
    shown = dict(record)
    hidden: set[str] = set()
    if not publication.training_loss:
        hidden |= {*_LOSSES}
        shown |= dict.fromkeys(("loss", "loss_weighted", "diverged"))
    if not publication.examples:
        hidden |= {*_OF_EXAMPLES}
        shown |= {"loss_weighted": None, "problems": dict.fromkeys(record["problems"], IN_THE_LOG)}
        if evaluation := record.get("evaluation"):
            shown["evaluation"] = {**evaluation, "problems": dict.fromkeys(evaluation["problems"], IN_THE_LOG)}
    shown["clients"] = {
        name: {key: value for key, value in metrics.items() if key not in hidden}
        for name, metrics in record["clients"].items()
    }
    if not publication.participants:
        shown |= {**dict.fromkeys((*OF_PARTICIPANTS, *_BYTES, "diverged")), "problems": {}, "clients": {}}
        shown["simulated_seconds"] = None  # which tells how slow the slowest of them was
        if "secure_aggregation" in record:  # how many clients it was with, who was late, and bytes that count them
            shown["secure_aggregation"] = None
        if evaluation := record.get("evaluation"):
            shown["evaluation"] = {**evaluation, "problems": {}}
    return shown


def shown_group(group: GroupCurves | None, publication: Publication) -> GroupCurves | None:
    """Return a group's curves without what is nearly one client's, and without weights by numbers of examples.

    The worst tenth of few clients is one client, and of the mean of two each finds the other's.
    """
    if group is None or not publication.evaluation:
        return None
    if group.num_clients < SMALLEST_COHORT and not publication.client_curves:
        return None
    unknown = (math.nan,) * len(group.loss)
    if not publication.client_curves:
        group = replace(group, worst_decile=unknown, spread=unknown, details={}, intervals={})
    if not publication.examples:
        weighted = None if group.accuracy_weighted is None else unknown
        group = replace(group, accuracy_weighted=weighted, loss_weighted=unknown)
    return group


def shown_clients(curves: Sequence[ClientCurves], publication: Publication) -> list[ClientCurves]:
    """Return the lines of clients.csv, without numbers of examples where these are withheld."""
    if publication.examples:
        return list(curves)
    return [replace(client, num_support=0, num_validation=0, num_test=0, confusion=()) for client in curves]


def shown_summary(summary: Mapping[str, Any], config: RunConfig, publication: Publication) -> dict[str, Any]:
    """Return the content of summary.json without what is withheld, and with a table of what is and what is not."""
    shown = dict(summary)
    if config.privacy.dp == "none":
        return shown
    if not publication.participants:
        shown |= {"costs": dict.fromkeys(summary["costs"]), "problems": dict.fromkeys(summary["problems"])}
        shown["rounds_without_reply"] = None
        shown |= dict.fromkeys(shown.keys() & {"dropped", "simulated_seconds"})
        if evaluation := summary.get("final_evaluation"):
            shown["final_evaluation"] = {**evaluation, "answered": None, "absent": {}, "never_seen": None}
    elif not publication.examples and (evaluation := summary.get("final_evaluation")):
        shown["final_evaluation"] = {**evaluation, "absent": dict.fromkeys(evaluation["absent"], IN_THE_LOG)}
    shown["outside_epsilon"] = {"published": list(publication.shown), "withheld": list(publication.withheld)}
    return shown


def shown_reason(cause: BaseException | None, publication: Publication) -> str:
    """Return why a run has ended, for its records: errors name clients, and quote what they sent.

    Whoever runs the process sees the error itself.
    """
    if cause is None:
        return ""
    is_shown = publication.participants and publication.examples
    if isinstance(cause, NufedError) and not isinstance(cause, DivergedError | BudgetSpentError) and not is_shown:
        return f"{type(cause).__name__}: {IN_THE_LOG}"
    return str(cause)


def lines_of_publication(config: RunConfig) -> list[str]:
    """Return what to say at the beginning of a run of what ε does not cover; nothing without differential privacy."""
    if config.privacy.dp == "none":
        return []
    publication = Publication.of(config)
    lines = []
    if publication.shown:
        lines.append(f"published although ε does not cover it: {', '.join(publication.shown)}")
    if publication.withheld:
        lines.append(f"withheld, as ε does not cover it: {', '.join(publication.withheld)} (--publish shows them)")
    return lines
