"""What client-level differential privacy adds to a run: its terms, what its records say of ε, and when it may go on."""

from pathlib import Path
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.privacy.ledger import LEDGER, PrivacyLedger
from nufed.common.privacy.noise import TEST_KEY_WARNING
from nufed.common.privacy.terms import client_terms
from nufed.server.checkpoint import checkpoint_round
from nufed.server.resuming import stored_config
from nufed.strategy.private_rounds import ClientPrivacy, PrivateRounds
from nufed.strategy.results import RoundResult


def client_privacy(config: RunConfig, resume: Path | None) -> ClientPrivacy | None:
    """Return the terms of a run's rounds: those that its ledger has, or for a new run planned ones; None without any.

    Args:
        config: the run's options.
        resume: folder of the run to go on with.

    Raises:
        BudgetSpentError: not even one round is within ε, or the further rounds that are asked for are not.
        ConfigError: no noise gives the ε asked for.
        RunError: the ledger of the run is missing or was changed.
    """
    if config.privacy.dp != "client":
        return None
    privacy, federation = config.privacy, config.federation
    if resume:
        ledger = PrivacyLedger.open_existing(resume / LEDGER, to_go_on=False)
        ledger.budget = privacy.epsilon
        further = federation.num_rounds - (checkpoint_round(resume) or 0)
        if federation.num_rounds > stored_config(resume).federation.num_rounds:
            ledger.check_affordable(ledger.terms.step(config.data.num_clients), further)
        return ClientPrivacy(ledger.terms, privacy.epsilon)
    terms = client_terms(
        clip=privacy.clip,
        rate=federation.participation_fraction,
        num_clients=config.data.num_clients,
        num_rounds=federation.num_rounds,
        noise=privacy.noise,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        cohort_cap=privacy.cohort_cap,
    )
    PrivacyLedger(terms, privacy.epsilon).check_affordable(terms.step(config.data.num_clients))
    return ClientPrivacy(terms, privacy.epsilon)


def begun(rounds: PrivateRounds | None, ledger: PrivacyLedger | None, num_rounds: int) -> list[str]:
    """Have the rounds be charged to a run's ledger from now on, and return what to say of them; nothing without one.

    Args:
        rounds: of the strategy, which keeps the ledger.
        ledger: of the run's folder.
        num_rounds: K.
    """
    if rounds is None or ledger is None:
        return []
    rounds.ledger = ledger
    terms = ledger.terms
    cap = f", at most {terms.cohort_cap} in a round" if terms.cohort_cap else ""
    drawn = f"each of n = {terms.num_clients} clients drawn with q = {terms.rate:g}{cap}"
    lines = [
        f"client-level privacy: clip C = {terms.clip:g}, noise z = {terms.noise:.4g}, {drawn}, δ = {terms.delta:.3g}"
    ]
    if ledger.charges:
        lines.append(f"ε = {ledger.epsilon:.4g} is spent, by {len(ledger.charges)} rounds")
    if ledger.budget:
        lines.append(f"the run stops before ε passes {ledger.budget:g}; {num_rounds} rounds are planned")
    return lines


def of_round(result: RoundResult) -> dict[str, float]:
    """Return what a round's line of metrics.jsonl says of ε so far; nothing without differential privacy."""
    return {"epsilon": result.privacy.epsilon, "delta": result.privacy.delta} if result.privacy else {}


def of_run(rounds: PrivateRounds | None) -> dict[str, Any]:
    """Return `privacy` of summary.json; nothing without it."""
    if rounds is None:
        return {}
    told = rounds.ledger.to_json()
    return {"privacy": told if rounds.ledger.is_private else {**told, "warning": TEST_KEY_WARNING}}
