"""Record-level differential privacy on a client: its consent, its budget, its account, and its meta steps.

What is asked of a client is not believed to be good for it: its own options say how much its records may cost
(`max-epsilon`), and whether it trains at all for a run that does not protect them (`require-record-privacy`).
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from nufed.client.record_cost import RecordCost
from nufed.client.record_ledger import Charge, RecordLedger, ledger_path
from nufed.client.workplace import Workplace
from nufed.common.config import RunConfig, Scalar
from nufed.common.data.private.load import is_slice
from nufed.common.data.private.rows import refusal, tell_here
from nufed.common.errors import ConfigError, ModelError
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.local_update import LocalUpdate, Stream, private_update
from nufed.common.meta.mapping import maps_examples
from nufed.common.meta.private_steps import Protection
from nufed.common.params import Params
from nufed.common.privacy.accounting import default_delta
from nufed.common.privacy.noise import random_source
from nufed.common.privacy.record import RecordPlan, record_plan, spent

MAX_EPSILON, REQUIRES = "max-epsilon", "require-record-privacy"
"""Of a node's configuration: the most that its records may cost, and whether it trains without their protection."""

_log = logging.getLogger("nufed.private")


def check_consent(config: RunConfig, node_config: Mapping[str, Scalar]) -> None:
    """Refuse to train for a run that does not protect records, where this client's options ask for that.

    Raises:
        ConfigError: with what to do.
    """
    if config.privacy.dp == "record":
        return
    for key in (MAX_EPSILON, REQUIRES):
        if node_config.get(key):
            raise refusal(
                ConfigError,
                f"this client trains with record-level differential privacy alone (--{key}), and the run has "
                f"privacy.dp={config.privacy.dp}; start the server with --dp record, or the client without --{key}",
            )


def train_privately(
    place: Workplace, params: Params, stream: Stream, node_config: Mapping[str, Scalar]
) -> tuple[LocalUpdate, RecordCost | None]:
    """Return a client's update with its records protected, and what they have cost; None in a simulation.

    The round is accounted for before anything is computed.

    Raises:
        ConfigError: the budget is spent, the ledger is damaged, or no noise gives the run's ε.
        ModelError: the model draws random numbers, of which the parts of one batch would need their own.
        RunError: the ledger cannot be written.
    """
    if place.masks:
        raise refusal(
            ModelError,
            "expected a model that draws no random numbers for privacy.dp=record, but it does (dropout); set "
            "model.dropout=0, or choose another model",
        )
    plan = plan_of(place)
    cost = _charge(place, plan, stream.round, node_config) if "data" in node_config else None
    privacy, support = place.config.privacy, place.data.support
    source = random_source("record", stream.client_id, stream.round)
    protection = Protection(privacy.clip, privacy.hvp_clip or privacy.clip, plan.noise, source)
    method = place.config.method
    twice = find_estimator(method.estimator).differentiates_twice and method.num_inner_steps > 0
    mapped = maps_examples(place.training_loss, params, support, twice=twice)
    update = private_update(place.training_loss, params, support, method, stream, protection=protection, mapped=mapped)
    return update, cost


def plan_of(place: Workplace) -> RecordPlan:
    """Return how a client's records are protected; N is taken for public."""
    return record_plan(place.config, len(place.data.support))


def known_cost(place: Workplace, node_config: Mapping[str, Scalar]) -> RecordCost | None:
    """Return what a deployed client's records have cost so far; None where they are not protected."""
    if place.config.privacy.dp != "record" or "data" not in node_config:
        return None
    ledger = _ledger(ledger_path(node_config), place.data.client_id)
    return _cost(ledger.charges(), run_name(place.config), plan_of(place).delta, len(place.data.support))


def run_name(config: RunConfig) -> str:
    """Return a hash of a run's options: a run that goes on after a crash has the same, and so has one begun again."""
    return hashlib.sha256(json.dumps(config.flat(), sort_keys=True).encode()).hexdigest()[:16]


def _charge(place: Workplace, plan: RecordPlan, round_number: int, node_config: Mapping[str, Scalar]) -> RecordCost:
    """Return the cost with this round, after it was written down.

    Raises:
        ConfigError: it would be above the run's ε or this client's own; nothing is written then.
    """
    path, run, size = ledger_path(node_config), run_name(place.config), len(place.data.support)
    _warn_without_file(path, node_config)
    charge = Charge(run, round_number, plan.steps)
    with _ledger(path, place.data.client_id).spending() as spending:
        before = spending.before
        cost = _cost([*before, charge], run, plan.delta, size)
        own = float(node_config.get(MAX_EPSILON) or math.inf)
        if cost.in_all > own:
            raise refusal(
                ConfigError,
                "this client's privacy budget is spent (--max-epsilon): it trains no more on these records, and is "
                "still evaluated",
                "round %d would bring the cost of these records to ε = %.4g, beyond --max-epsilon %.4g (δ = %.3g): "
                "refused. So far %d rounds cost ε = %.4g",
                *(round_number, cost.in_all, own, default_delta(size)),
                *(len(before), spent([each.steps for each in before], default_delta(size))),
            )
        if cost.epsilon > (place.config.privacy.epsilon or math.inf):
            raise refusal(
                ConfigError,
                f"privacy.epsilon={place.config.privacy.epsilon:g} of this run is spent for this client's records: it "
                "trains no more, and is still evaluated",
            )
        spending.add(charge)
    _log.warning(
        "round %d: privacy of each record so far in this run ε = %.4g (δ = %.3g, z = %.4g), in all runs ε = %.4g",
        *(round_number, cost.epsilon, cost.delta, plan.noise, cost.in_all),
    )
    return cost


def _cost(charges: list[Charge], run: str, delta: float, num_examples: int) -> RecordCost:
    of_run = [charge.steps for charge in charges if charge.run == run]
    epsilon = spent(of_run, delta)
    own_delta = default_delta(num_examples)
    in_all = epsilon
    if len(of_run) < len(charges) or own_delta != delta:
        in_all = spent([charge.steps for charge in charges], own_delta)
    return RecordCost(epsilon, delta, in_all, len(of_run))


def _warn_without_file(path: Path | None, node_config: Mapping[str, Scalar]) -> None:
    if path is None and not is_slice(str(node_config.get("data", ""))):
        _tell_once(
            "what these records cost is not remembered beyond this process: give --privacy-ledger FILE, --state FILE "
            "or --personal-model FILE"
        )


@lru_cache(maxsize=8)
def _tell_once(text: str) -> None:
    tell_here("%s", text)


@lru_cache(maxsize=64)
def _ledger(path: Path | None, _client_id: str) -> RecordLedger:
    return RecordLedger(path)


def check_budget(node_config: Mapping[str, Scalar]) -> None:
    """Refuse a budget of a client that nobody would remember, before it dials.

    Raises:
        ConfigError: there is no file, or it is damaged.
        RunError: the file that was named cannot be written.
    """
    path = ledger_path(node_config)
    if node_config.get(MAX_EPSILON) and path is None:
        raise ConfigError(
            "--max-epsilon bounds what all runs together cost, and there is no file that remembers it. Give "
            "--privacy-ledger FILE, --state FILE or --personal-model FILE."
        )
    ledger = RecordLedger(path)
    ledger.charges()
    if node_config.get(MAX_EPSILON) or node_config.get("privacy-ledger"):
        ledger.try_writing()
