"""Every deliberate error of NuFed.

    NufedError                 exit code 1: expected, explained, no traceback
    ├── ConfigError            exit code 2: a run option is unknown, out of range or contradicts another
    ├── DataError              exit code 3: a data source is missing, malformed or too small
    ├── ModelError             exit code 4: a model cannot be built or cannot be meta-trained
    ├── WireError              exit code 5: a message between server and client is not what was agreed
    ├── RunError               exit code 6: a run cannot start, go on, or be written down
    └── PeerError              exit code 7: the other machine refuses us, or is not the one we expect

Three of them tell how a run ended, and go with the `status` in its summary.json:

    RunError
    ├── NothingTrainedError    exit code 8, `nothing-trained`: no round had a reply that could be used
    └── BudgetSpentError       exit code 10, `budget-spent`: one more round would reveal more than ε allows
    ModelError
    └── DivergedError          exit code 9, `diverged`: the model, or most clients' fine-tuning, left the finite numbers

A run that is `complete` ends with exit code 0; one that was `interrupted` (Ctrl-C, SIGTERM) with 130, and can go on.

A message says what was expected, what came, and what to do, in that order.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class NufedError(Exception):
    """A problem whose message tells the user what to do.

    Attributes:
        exit_code: of a command that fails with it.
        sendable: whether a client with data of its own may send the message to the server: it holds counts and the
            run's own names alone. Nothing else is sent (client/error_replies.py).
    """

    exit_code = 1
    sendable = False


class ConfigError(NufedError):
    """A run option is unknown, out of range or contradicts another."""

    exit_code = 2


class DataError(NufedError):
    """A data source is missing, malformed or too small."""

    exit_code = 3


class ModelError(NufedError):
    """A model cannot be built or cannot be meta-trained."""

    exit_code = 4


class WireError(NufedError):
    """A message between server and client is not what was agreed."""

    exit_code = 5
    sendable = True  # a client raises it about what the server sent


class RunError(NufedError):
    """A run cannot start, go on, or be written down."""

    exit_code = 6


class PeerError(NufedError):
    """The other machine refuses us, or is not the one we expect."""

    exit_code = 7


class NothingTrainedError(RunError):
    """No round of a run had a reply that could be used; the server's model is the one it started from."""

    exit_code = 8


class BudgetSpentError(RunError):
    """One more round of a run with differential privacy would take ε beyond its budget."""

    exit_code = 10


class DivergedError(ModelError):
    """The server's model, or the fine-tuning of most clients, left the finite numbers."""

    exit_code = 9


LISTED = 20
"""Most names that a message lists; more hide the one that was meant."""


def nearest_match_hint(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'? Known: a, b, c.` for an unknown name; long lists are left out."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    # A mark of punctuation alone would not be told from the commas of the list.
    shown = ", ".join(name if any(map(str.isalnum, name)) else repr(name) for name in known)
    return f"{guess} Known: {shown}." if len(known) <= LISTED else guess
