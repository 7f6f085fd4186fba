"""Secure aggregation: a server learns the sum of its clients' integers and nothing else of any of them.

The protocol is Bonawitz et al. 2017 (Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS) with
its consistency round, on a complete graph of neighbours or on one in which each client draws its own (Bell et al. 2020,
Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS). It knows nothing of Flower or of models:
docs/secure-aggregation.md says what it protects, docs/decisions/0021-secure-aggregation.md why it is as it is.

    stage       client                                       server
    advertise   SecureTask → AdvertisedKeys                  collects them: CohortKeys
    share       CohortKeys → EncryptedShares                 deals them out: DeliveredShares
    mask        DeliveredShares, integers → MaskedInput      adds them up: Survivors
    confirm     Survivors → Confirmation                     collects signatures: ConfirmedSurvivors
    reveal      ConfirmedSurvivors → RevealedShares          removes the masks: UnmaskedSum
"""

from nufed.common.privacy.secure.client import SecureClient
from nufed.common.privacy.secure.failures import RoundFailedError, UnsafeRoundError
from nufed.common.privacy.secure.keys import Identity
from nufed.common.privacy.secure.messages import (
    AdvertisedKeys,
    CohortKeys,
    Confirmation,
    ConfirmedSurvivors,
    DeliveredShares,
    EncryptedShares,
    MaskedInput,
    RevealedShares,
    SecureTask,
    Survivors,
)
from nufed.common.privacy.secure.plan import ClientPolicy, plan_task
from nufed.common.privacy.secure.roster import Roster
from nufed.common.privacy.secure.server import SecureServer, UnmaskedSum

__all__ = [
    "AdvertisedKeys",
    "ClientPolicy",
    "CohortKeys",
    "Confirmation",
    "ConfirmedSurvivors",
    "DeliveredShares",
    "EncryptedShares",
    "Identity",
    "MaskedInput",
    "RevealedShares",
    "Roster",
    "RoundFailedError",
    "SecureClient",
    "SecureServer",
    "SecureTask",
    "Survivors",
    "UnmaskedSum",
    "UnsafeRoundError",
    "plan_task",
]
