"""What an actor or a worker process does with the clients that it is given: one after another, or several at once.

With several at once, each actor computes what the engine `cohort` computes, on as many clients as it is given: the two
speed-ups multiply. Which clients are computed together follows from who is asked and from the number for each actor,
never from how many actors there are or which of them is free; so a run's numbers do not depend on the machines.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from nufed.common.errors import ConfigError
from nufed.common.steps.cautions import Caution, caution
from nufed.deploy.simulation.simulated_grid import ClientTurn, take_turn

if TYPE_CHECKING:
    from nufed.deploy.simulation.cohort import CohortTurns

Job = Sequence[tuple[Message, Context]]

_log = logging.getLogger("nufed.simulation")


@dataclass(frozen=True)
class Done:
    """What became of a job.

    Attributes:
        turns: in the job's order.
        said: logger, level and text of what the user of the run is to know.
        cautions: likewise, what was warned of.
    """

    turns: tuple[ClientTurn, ...]
    said: tuple[tuple[str, int, str], ...] = ()
    cautions: tuple[str, ...] = ()


class ActorTurns:
    """Does an actor's jobs; holds what was found out about the clients' models in those before."""

    def __init__(self, client_app: ClientApp, *, together: bool) -> None:
        """Serve this app.

        Args:
            client_app: the app.
            together: whether the clients of a job are computed at once.

        Raises:
            RunError: they are, and the ClientApp is not NuFed's own.
        """
        self._client_app = client_app
        self._cohort = _cohort_turns(client_app) if together else None

    def do(self, job: Job) -> Done:
        """Return the turns of a job's clients, whose messages have different ids.

        Raises:
            NufedError: a client's own explanation of what is wrong with its data or options.
        """
        if self._cohort is None:
            return Done(tuple(take_turn(self._client_app, message, context) for message, context in job))
        contexts = {message.metadata.message_id: context for message, context in job}
        with _heard() as (said, cautions):
            taken = self._cohort.take(
                [message for message, _ in job], lambda message: contexts[message.metadata.message_id]
            )
            turns = {message.metadata.message_id: turn for message, turn in taken}
        return Done(tuple(turns[key] for key in contexts), tuple(said), tuple(cautions))


def _cohort_turns(client_app: ClientApp) -> "CohortTurns":
    from nufed.deploy.simulation.cohort import CohortTurns  # loads PyTorch, which other apps may do without

    return CohortTurns(client_app)


@contextmanager
def _heard() -> Iterator[tuple[list[tuple[str, int, str]], list[str]]]:
    """Collect what is logged and warned of in the block: nobody reads an actor's own output."""
    said: list[tuple[str, int, str]] = []
    cautions: list[str] = []
    ours, show = logging.getLogger("nufed"), warnings.showwarning

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.name, record.levelno, record.getMessage()))

    def collect(message: Warning | str, category: type[Warning], *where: object) -> None:
        if issubclass(category, Caution):
            cautions.append(str(message))
        else:
            show(message, category, *where)  # type: ignore[arg-type] # as it came

    collector = Collector(logging.WARNING)
    ours.addHandler(collector)
    with warnings.catch_warnings():
        warnings.showwarning = collect  # type: ignore[assignment] # passes on the rest as it comes
        try:
            yield said, cautions
        finally:
            ours.removeHandler(collector)


class Portions:
    """Divides the messages of a phase into jobs; holds what actors have said, so that it is said once."""

    def __init__(self, clients_per_actor: int) -> None:
        """Put at most so many clients into a job.

        Raises:
            ConfigError: there is none.
        """
        if clients_per_actor < 1:
            raise ConfigError(f"Expected --clients-per-actor of 1 or more, got {clients_per_actor}. Raise it.")
        self._most = clients_per_actor
        self._said: set[tuple[str, int, str]] = set()

    @property
    def together(self) -> bool:
        """Return whether the clients of a job are computed at once."""
        return self._most > 1

    def of(self, messages: Sequence[Message], num_actors: int) -> list[Sequence[Message]]:
        """Return jobs of consecutive messages whose lengths differ by one at most.

        They follow from the messages and the number of clients for each actor alone.

        Args:
            messages: of one phase.
            num_actors: that work on them; the user is told where only one of several has anything to do.
        """
        if not messages:
            return []
        count = math.ceil(len(messages) / self._most)
        if num_actors > count == 1 < len(messages) and messages[0].metadata.message_type == MessageType.TRAIN:
            text = (
                f"All {len(messages)} clients of a round fit into one actor of {num_actors}, which is given "
                f"{self._most} at a time; fewer for each would use the others."
            )
            self.repeat(Done((), ((_log.name, logging.WARNING, text),)))
        ends = [len(messages) * number // count for number in range(count + 1)]
        return [messages[start:end] for start, end in pairwise(ends)]

    def repeat(self, done: Done) -> None:
        """Tell here what was said in an actor, each thing once however many have said it."""
        for each in done.said:
            if each not in self._said:
                self._said.add(each)
                name, level, text = each
                logging.getLogger(name).log(level, "%s", text)
        for text in done.cautions:
            caution(text)
