"""A client's rounds of secure aggregation: at most one is open, and none is gone through twice."""

import os
from typing import NoReturn

from nufed.common.privacy.secure.client import SecureClient
from nufed.common.privacy.secure.failures import UnsafeRoundError
from nufed.common.privacy.secure.keys import Entropy, Identity
from nufed.common.privacy.secure.messages import SecureTask
from nufed.common.privacy.secure.plan import ClientPolicy
from nufed.common.privacy.secure.roster import Roster
from nufed.common.untrusted import shown


class ClientRounds:
    """Holds a client's open round, and of each run the last round in which it masked.

    A round in which this client gave its integers away is not repeated: the difference of two sums of one round, with
    and without a client, is that client's part.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        *,
        policy: ClientPolicy = ClientPolicy(),  # noqa: B008 - frozen
        entropy: Entropy = os.urandom,
    ) -> None:
        """Start without a round; for the arguments see `SecureClient`."""
        self._identity, self._roster, self._policy, self._entropy = identity, roster, policy, entropy
        self._open: SecureClient | None = None
        self._masked: dict[str, int] = {}

    @property
    def current(self) -> SecureClient:
        """The open round.

        Raises:
            UnsafeRoundError: there is none.
        """
        if self._open is None:
            raise UnsafeRoundError("Expected a round of secure aggregation that is open, got none. Start a round.")
        return self._open

    def start(self, task: SecureTask) -> SecureClient:
        """Return the round of a task: the open one if it is the same task, else a new one, which closes the open one.

        Raises:
            UnsafeRoundError: this client has masked in that round, or in a later one of that run, or it refuses the
                task.
        """
        if self._open is not None and self._open.task == task:
            return self._open
        self.close()
        if task.round <= self._masked.get(task.run_id, -1):
            raise UnsafeRoundError(
                f"Expected a round after {self._masked[task.run_id]} of run {shown(task.run_id)}, got round "
                f"{task.round}. Start the next round."
            )
        self._open = SecureClient(task, self._identity, self._roster, policy=self._policy, entropy=self._entropy)
        return self._open

    def close(self) -> None:
        """Drop the open round and its secrets."""
        if self._open is not None:
            self._open.forget()
            if self._open.has_masked:
                self._masked[self._open.task.run_id] = self._open.task.round
        self._open = None

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("Expected secrets of a round to stay in the process that made them; do not pickle them.")
