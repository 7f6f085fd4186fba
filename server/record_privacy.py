"""What a run's rounds have cost each client's records, for the summary (privacy.dp record)."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.privacy.publishing import Publication
from nufed.common.privacy.record import record_plan
from nufed.server.history import History
from nufed.strategy.known_clients import Member
from nufed.strategy.results import PhaseResult


def record_summary(config: RunConfig, history: History, members: Mapping[str, Member]) -> dict[str, Any]:
    """Return `record_privacy` of summary.json: ε of a record, worst and median over clients; nothing without it.

    A client with data of its own tells what it has spent, redone rounds included, where numbers of examples are
    published, for ε tells of them; else it keeps that to itself, and all that is known here is the run's own ε, which
    no client passes. Of a simulated client the rounds that it was asked in are counted.

    Args:
        config: the run's options.
        history: of the run.
        members: its clients.
    """
    if config.privacy.dp != "record":
        return {}
    each = {
        name: history.epsilons.get(name) or record_plan(config, members[name].description.num_support).epsilon(count)
        for name, count in sorted(history.rounds_asked.items())
        if name in history.epsilons or (name in members and members[name].description.num_support)
    }
    found = list(each.values())
    told: dict[str, Any] = {
        "unit": "record",
        "worst_epsilon": max(found) if found else config.privacy.epsilon or None,
        "median_epsilon": median(found) if found else None,
        "delta": config.privacy.delta or "N^-1.1 of each client",
        "num_untold": len(history.rounds_asked) - len(found),
    }
    return {"record_privacy": {**told, "epsilons": each} if Publication.of(config).examples else told}


def with_record_costs(history: History, config: RunConfig, result: PhaseResult) -> History:
    """Return the history with what a round has cost its clients' records, where these are protected."""
    return history.after_training(result) if config.privacy.dp == "record" else history
