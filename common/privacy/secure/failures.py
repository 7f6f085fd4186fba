"""The two ways in which a round of secure aggregation ends without a sum."""

from nufed.common.errors import RunError, WireError


class UnsafeRoundError(WireError):
    """A client refuses a request of the server, because answering it could reveal more than a sum."""


class RoundFailedError(RunError):
    """A server cannot unmask a round's sum: too few clients stayed, or shares contradict each other."""
