"""Where a run stands between two steps of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nufed.common.params import Params
from nufed.server.client_curves import ClientCurves
from nufed.server.history import History


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        round: server updates done.
        params: w_k.
        history: sums and evaluations so far.
        curves: of the last evaluation of all or some of the clients.
        problems: why replies of the last phase were not used, by client id.
        num_idle: rounds of this process in which no reply could be used.
        answered: clients that answered the last evaluation, in some way.
    """

    round: int
    params: Params
    history: History
    curves: Sequence[ClientCurves] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    num_idle: int = 0
    answered: frozenset[str] = frozenset()
