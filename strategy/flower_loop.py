"""What `MetaFedAvg` needs where a loop that is not ours sends the messages of its phases."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from nufed.common.errors import RunError
from nufed.common.message_schema import CurveShape
from nufed.common.model_arrays import arrays_to_params, params_to_arrays
from nufed.common.params import Params
from nufed.strategy.exchange import sender_of
from nufed.strategy.phase import EvaluationPhase, Outgoing, Phase, TrainingPhase
from nufed.strategy.results import ClientMetrics, EvaluatedGroup, RoundResult

AnyPhase = TypeVar("AnyPhase", bound=Phase)


def take_all(phase: Phase, replies: Iterable[Message]) -> None:
    """Enter the replies that such a loop has collected."""
    sender = sender_of(phase.messages)
    for reply in replies:
        phase.take(sender(reply), reply)


def configured(kind: str, server_round: int, phase: AnyPhase | None) -> AnyPhase:
    """Return the phase that replies of a round belong to.

    Raises:
        RunError: it was not opened; with what to call first.
    """
    if phase is None or phase.round != server_round:
        called = f"was called for round {phase.round}" if phase else "was not called"
        raise RunError(
            f"Expected configure_{kind} before aggregate_{kind} of round {server_round}, but it {called}. Call it "
            "first."
        )
    return phase


def check_opens(*, is_secure: bool, is_buffered: bool = False) -> None:
    """Refuse to open a round that such a loop cannot carry out.

    Raises:
        RunError: with secure aggregation, whose rounds are several exchanges, and with buffered steps.
    """
    if is_buffered:
        raise RunError(
            "Expected `start` or `train_round` in buffered mode, where clients are asked one by one, got "
            "`configure_train`, which asks all of a round. Call one of the two."
        )
    if is_secure:
        raise RunError(
            "Expected `start` or `train_round` with secure aggregation, whose rounds are five exchanges, got "
            "`configure_train`, which opens one. Call one of the two."
        )


class LoopMethods(Strategy):
    """Holds the phases that such a loop has opened: the methods that Flower calls, made of those of `MetaFedAvg`."""

    _training: TrainingPhase | None
    _evaluation: EvaluationPhase | None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages that open a round, for a loop that sends them itself.

        Raises:
            RunError: in buffered mode, and with secure aggregation, whose rounds are several exchanges.
        """
        self._check_opens()
        outgoing = Outgoing(MessageType.TRAIN, server_round, arrays, config)
        self._training = self._open_training(grid, outgoing, arrays_to_params(arrays))
        return self._training.messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model and the metrics that the replies make; (None, None) if none is usable and nothing private.

        Raises:
            RunError: `configure_train` was not called for this round.
        """
        phase, self._training = configured("train", server_round, self._training), None
        take_all(phase, replies)
        result = self._close_training(phase)
        arrays = params_to_arrays(result.params) if result.counts.replied or result.privacy else None
        return arrays, self._metric_record(result.client_metrics, "training-loss")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages that open an evaluation; none in rounds without one."""
        if not self._evaluates_in(server_round):
            return []
        outgoing = Outgoing(MessageType.EVALUATE, server_round, arrays, config)
        self._evaluation = self._open_evaluation(grid, outgoing, "participating")
        return self._evaluation.messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return averages over clients, or None if there was no evaluation or no usable reply.

        Raises:
            RunError: `configure_evaluate` was not called for this round.
        """
        if not self._evaluates_in(server_round):
            return None
        phase, self._evaluation = configured("evaluate", server_round, self._evaluation), None
        take_all(phase, replies)
        return self._metric_record(phase.close("participating").client_metrics, "evaluation")

    @abstractmethod
    def _check_opens(self) -> None:
        """Refuse to open a round that such a loop cannot carry out."""

    @abstractmethod
    def _open_training(self, grid: Grid, outgoing: Outgoing, sent: Params) -> TrainingPhase:
        """Choose clients, and open a round."""

    @abstractmethod
    def _close_training(self, phase: TrainingPhase) -> RoundResult:
        """Return what a round has left behind."""

    @abstractmethod
    def _open_evaluation(
        self, grid: Grid, outgoing: Outgoing, group: EvaluatedGroup, shape: CurveShape | None = None
    ) -> EvaluationPhase:
        """Open an evaluation."""

    @abstractmethod
    def _evaluates_in(self, number: int) -> bool:
        """Return whether a round has an evaluation that is shown."""

    @abstractmethod
    def _metric_record(self, client_metrics: ClientMetrics, name: str) -> MetricRecord | None:
        """Return averages over clients; None where there are none to show."""
