"""How `nufed client --once` ends: with the run's own exit code, and not with 0 where something asked for is missing."""

from pathlib import Path

from nufed.common.errors import BudgetSpentError, DivergedError, NothingTrainedError, RunError
from nufed.deploy.network.direct_client import ENDED, ENDINGS


def check_ending(ending: str, *, server: str, unwritten: Path | None) -> None:
    """Return if a run came to its end and left here what it should.

    Args:
        ending: how the run ended, in the server's words.
        server: its address, for messages.
        unwritten: file of the personal model that was asked for and not written; None if nothing is missing.

    Raises:
        NothingTrainedError, DivergedError, BudgetSpentError: so did the run.
        RunError: the run was interrupted, or the personal model was not written.
    """
    missing = f"; the personal model {unwritten} was not written" if unwritten else ""
    said = f"The run at {server} {ENDINGS.get(ending, ENDED)}{missing}."
    if ending == "nothing-trained":
        raise NothingTrainedError(f"{said} The server's operator sees why.")
    if ending == "diverged":
        raise DivergedError(f"{said} The server's operator sees where.")
    if ending == "budget-spent" and not unwritten:
        raise BudgetSpentError(f"{said} The model that there is was evaluated; give the command again if it goes on.")
    if ending == "interrupted":
        raise RunError(f"{said} Give the command again, so that this client is there when the server goes on.")
    if unwritten and ending != "tuned":  # no model comes of a search
        raise RunError(
            f"{said} This client was not asked for its last evaluation, or failed in it, as it says above. Make the "
            "model with `nufed personalize` from the run's model.safetensors, or have the server repeat the final "
            "evaluation (`nufed server --resume`)."
        )


def last_written(path: Path | None) -> int | None:
    """Return when a file was last written, in nanoseconds; None if there is none."""
    return path.stat().st_mtime_ns if path and path.exists() else None
