"""The server of generalized meta federated learning as a Flower Strategy (Jamali, Saber and Bae 2025, server side).

    for k in rounds:  choose S_k  →  send (w_k, k)  →  receive w_k^i, one by one  →  w_{k+1} = Σ p_i w_k^i

What the clients do with w_k is theirs: ν, τ, α, β and the estimator never reach this file. So it serves FedAvg
clients as well, with the same care about their replies.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from flwr.app import ArrayRecord, ConfigRecord, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from nufed.common.fixed_point import DEFAULT_MAX_GROWTH
from nufed.common.message_schema import CurveShape
from nufed.common.model_arrays import arrays_to_params, params_to_arrays
from nufed.common.params import Params
from nufed.strategy.buffer_options import BufferOptions, Mode, checked_stragglers
from nufed.strategy.buffered import BufferedSteps, BufferPhase
from nufed.strategy.exchange import Quorum, simulated_now
from nufed.strategy.flower_loop import LoopMethods, check_opens
from nufed.strategy.known_clients import Member
from nufed.strategy.members import Roster
from nufed.strategy.option_ranges import check_ranges
from nufed.strategy.participation import Judges, choose, choose_more, num_asked, num_chosen
from nufed.strategy.phase import AveragingRule, EvaluationPhase, Outgoing, TrainingPhase
from nufed.strategy.private_rounds import ClientPrivacy, PrivateRound, PrivateRounds, check_private_options
from nufed.strategy.results import ClientMetrics, EvaluatedGroup, EvaluationResult, RoundResult, Weighting, average
from nufed.strategy.robust_options import RobustOptions, check_round_size, check_rule
from nufed.strategy.secure_phase import SecureAggregation, SecureTrainingPhase, check_secure_options
from nufed.strategy.server_step import ServerOptimizer, ServerState, as_optimizer
from nufed.strategy.telling import Telling
from nufed.strategy.weights import DEFAULT_MAX_WEIGHT

DEFAULT_GRACE = 60.0
"""Seconds that clients have once enough others have answered."""

DEFAULT_TIMEOUT = 3600.0
"""Seconds, as in Flower's strategies."""

_log = logging.getLogger("flwr")  # progress goes where that of every Flower strategy goes


class MetaFedAvg(LoopMethods):
    """Holds who takes part, between rounds; a Flower Strategy that can be used alone in any ServerApp.

    It differs from Flower's FedAvg in that a run is repeatable (clients are chosen by their stable ids from a seeded
    stream, and the mean has the same bits in whatever order they answer) and that no client can spoil it: each
    reply is checked before it counts, and what is wrong with it is counted, named and logged.

    Examples:
        >>> strategy = MetaFedAvg(seed=0, participation_fraction=0.5, weighting="uniform")
        >>> strategy.weighting
        'uniform'
    """

    def __init__(  # noqa: PLR0913 - the options of a strategy, all by name
        self,
        *,
        seed: int = 0,
        participation_fraction: float = 0.5,
        weighting: Weighting = "uniform",
        server_lr: float = 1.0,
        server_optimizer: str | ServerOptimizer = "sgd",
        evaluation_interval: int = 1,
        num_judges: int = 0,
        min_clients: int = 1,
        max_growth: float = DEFAULT_MAX_GROWTH,
        max_weight: float = DEFAULT_MAX_WEIGHT,
        aggregation: str = "mean",
        num_attackers: int = 0,
        bucket_size: int = 1,
        min_reply_fraction: float = 1.0,
        reply_grace: float = DEFAULT_GRACE,
        over_selection: float = 0.0,
        mode: Mode = "synchronous",
        buffer: BufferOptions | None = None,
        privacy: ClientPrivacy | None = None,
        secure: SecureAggregation | None = None,
    ) -> None:
        """Set what stays the same over a run.

        Args:
            seed: of the choice of clients.
            participation_fraction: r in (0, 1], share of the connected participating clients that is asked in a round.
            weighting: weights in the mean over clients: `uniform` (the theory) or `examples` (p_i ∝ N_i).
            server_lr: ε in w_{k+1} = w_k + ε (Σ p_i w_k^i - w_k); 1 takes the mean itself. Any optimizer's step size.
            server_optimizer: of what goes on w_k - mean, a key of `nufed.strategy.server_step.SERVER_OPTIMIZERS`, or
                one with options. What it remembers is in `server_state`.
            evaluation_interval: rounds between evaluations in `start`; 0 turns them off.
            num_judges: clients of each group that are asked in an evaluation, always the same ones; 0 asks all.
            min_clients: clients that `start` waits for.
            max_growth: a reply whose largest magnitude in an array is beyond max(1, that of the array sent) times this
                counts as diverged; at least 1, rounded up to powers of two.
            max_weight: with weights by examples, a client counts at most this many times the median of the clients'
                numbers of examples; at least 1.
            aggregation: how the clients' models become one, a key of `nufed.strategy.aggregation.AGGREGATION_RULES`.
            num_attackers: b, clients of a round that may send anything; robust rules alone.
            bucket_size: s, replies averaged with one another before a robust rule sees them; 1 averages none.
            min_reply_fraction: share of the clients asked, in (0, 1], whose replies are enough: a phase ends
                `reply_grace` seconds after they came. 1 waits for all, so that a run is repeatable; below 1 it depends
                on who was fast.
            reply_grace: seconds that the others have after that.
            over_selection: o; a round asks (1 + o) times the clients that it needs, or all there are, and ends when as
                many as it needs have replied; `min_reply_fraction` is a share of those that it needs.
            mode: `synchronous` rounds, or `buffered` steps after every b replies (nufed.strategy.buffered).
            buffer: what buffered steps are told; None takes the defaults.
            privacy: client-level differential privacy: updates are clipped, noised and accounted, and clients are
                drawn in secret, each with the probability r. None is without.
            secure: how the server is to learn the sum of a round's models alone; None lets it see each.

        Raises:
            ConfigError: an option is out of range, contradicts another, or a name is unknown.
            RunError: there is a ledger, and it was changed.
        """
        check_ranges(options := dict(locals()))
        robust = RobustOptions(num_attackers, bucket_size, seed)
        check_rule(aggregation, weighting, robust)
        if privacy:
            check_private_options(privacy, options)
        if secure:
            check_secure_options(aggregation)
        self.private = PrivateRounds(privacy) if privacy else None  # what the rounds have cost
        self._shown = privacy.publish if privacy else None  # of what ε does not cover; None shows everything
        self.seed = seed
        self.participation_fraction = participation_fraction
        self.weighting = weighting
        self.server_lr = server_lr
        self.server_optimizer = as_optimizer(server_optimizer)
        self.server_state: ServerState = {}  # after the last round; set it to go on with a run
        self.evaluation_interval = evaluation_interval
        self.judges = Judges(num_judges, seed=seed)
        self.min_clients = min_clients
        self.max_growth = max_growth
        self.max_weight = max_weight
        self.aggregation = aggregation
        self.robust = robust
        self.min_reply_fraction = min_reply_fraction
        self.reply_grace = reply_grace
        self.over_selection = over_selection
        self.secure = secure
        self.telling = Telling()  # who takes the events of a run
        self._roster = Roster(self.telling)
        buffer = checked_stragglers(mode, buffer, over_selection, privacy=privacy, secure=secure)
        self.buffered = BufferedSteps(buffer, seed, self.telling) if buffer else None  # and who is at work
        self._training, self._evaluation = None, None

    @property
    def members(self) -> Mapping[str, Member]:
        """The clients known so far, by id."""
        return MappingProxyType(self._roster.members)

    def discover(
        self, grid: Grid, *, expected: int, timeout: float = DEFAULT_TIMEOUT, config: ConfigRecord | None = None
    ) -> dict[str, Member]:
        """Wait for clients, ask them who they are, and return them by id.

        Nodes whose app answers no query take part under the id `node-<node id>`. Nodes that come later are asked at
        the start of the next round.

        Args:
            grid: any Flower Grid.
            expected: clients to wait for, new ones included.
            timeout: seconds.
            config: what clients are sent with the question, now and later; not changed.

        Raises:
            RunError: too few clients in time, or two with one id.
            ConfigError: a round of these clients is too small for the rule of aggregation.
        """
        self._roster.told = config or ConfigRecord()
        self._roster.discover(grid, expected, timeout)
        if here := len(self._roster.connected(grid, ["participating"])):
            used = num_chosen(here, self.participation_fraction)
            if self.buffered:
                used = min(here, self.buffered.options.size)
            check_round_size(self.aggregation, used, self.robust)
        return dict(sorted(self._roster.members.items()))

    def train_round(
        self,
        grid: Grid,
        params: Params,
        round: int,  # noqa: A002 - the vocabulary's word
        *,
        timeout: float = DEFAULT_TIMEOUT,
        config: ConfigRecord | None = None,
    ) -> RoundResult:
        """Run one round: choose, send, receive, average.

        Args:
            grid: any Flower Grid.
            params: w_k; not changed.
            round: k, which the choice of clients depends on.
            timeout: seconds to wait for replies, and for a client if none is connected.
            config: what clients are sent beside `server-round`; not changed.

        Raises:
            RunError: no participating client within `timeout`.
            ModelError: w_k is not finite.
            BudgetSpentError: with differential privacy, one more round would reveal more than ε.
        """
        outgoing = Outgoing(MessageType.TRAIN, round, params_to_arrays(params), config or ConfigRecord(), timeout)
        phase = self._open_training(grid, outgoing, params)
        if self.buffered and isinstance(phase, BufferPhase):
            self.buffered.run(grid, outgoing, phase, self._roster, self.participation_fraction)
        else:
            phase.exchange(grid, timeout, partial(self._quorum, needed=phase.needed))
        return self._close_training(phase)

    def evaluate_round(  # noqa: PLR0913 - as train_round, and the group
        self,
        grid: Grid,
        params: Params,
        round: int,  # noqa: A002 - the vocabulary's word
        *,
        group: EvaluatedGroup = "participating",
        timeout: float = DEFAULT_TIMEOUT,
        config: ConfigRecord | None = None,
        shape: CurveShape | None = None,
    ) -> EvaluationResult:
        """Have the connected clients of a group, or the judges among them, judge a model; nobody if there is none.

        Args:
            grid: any Flower Grid.
            params: the model; not changed.
            round: k, which is sent along.
            group: who is asked.
            timeout: seconds to wait for replies.
            config: what clients are sent beside `server-round`; not changed.
            shape: what the curves must be, or the reply is rejected; None takes any.
        """
        outgoing = Outgoing(MessageType.EVALUATE, round, params_to_arrays(params), config or ConfigRecord(), timeout)
        phase = self._open_evaluation(grid, outgoing, group, shape)
        phase.take_stream(grid, timeout, self._quorum)
        return phase.close(group)

    def start(  # noqa: PLR0913 - Flower's signature, and two options more
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = DEFAULT_TIMEOUT,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        first_round: int = 1,
        on_round: Callable[[RoundResult], None] | None = None,
    ) -> Result:
        """Run rounds `first_round` to `num_rounds` and return Flower's Result, with the last model in `arrays`.

        Args:
            grid: any Flower Grid.
            initial_arrays: the model before `first_round`.
            num_rounds: K, the last round.
            timeout: seconds to wait for clients at the start, and for the replies of a phase.
            train_config: what clients are sent for training; not changed.
            evaluate_config: what clients are sent for evaluation; not changed.
            evaluate_fn: judges the model on the server, before round 1 and after each round.
            first_round: above 1 to go on with a run.
            on_round: is told the result of each training round, e.g. to write a checkpoint.

        Raises:
            RunError: too few clients.
        """
        self.summary()
        result, params = Result(arrays=initial_arrays), arrays_to_params(initial_arrays)
        self.discover(grid, expected=self.min_clients, timeout=timeout)

        def judge(done: int) -> None:
            if evaluate_fn and (metrics := evaluate_fn(done, result.arrays)) is not None:
                result.evaluate_metrics_serverapp[done] = metrics

        if first_round == 1:
            judge(0)
        for number in range(first_round, num_rounds + 1):
            trained = self.train_round(grid, params, number, timeout=timeout, config=train_config)
            params = trained.params
            result.arrays = params_to_arrays(params)
            _log.info("Round %d of %d: %s", number, num_rounds, trained.counts)
            if (metrics := self._metric_record(trained.client_metrics, "training-loss")) is not None:
                result.train_metrics_clientapp[number] = metrics
            if on_round:
                on_round(trained)
            if self._evaluates_in(number):
                judged = self.evaluate_round(grid, params, number, timeout=timeout, config=evaluate_config)
                if (metrics := self._metric_record(judged.client_metrics, "evaluation")) is not None:
                    result.evaluate_metrics_clientapp[number] = metrics
            judge(number)
        return result

    def _check_opens(self) -> None:
        check_opens(is_secure=self.secure is not None, is_buffered=self.buffered is not None)

    def summary(self) -> None:
        """Log the options."""
        _log.info(
            "MetaFedAvg: seed %d, participation fraction %g, weighting %s, evaluation interval %d",
            self.seed,
            self.participation_fraction,
            self.weighting,
            self.evaluation_interval,
        )

    def _open_training(self, grid: Grid, outgoing: Outgoing, sent: Params) -> TrainingPhase:
        patience = DEFAULT_TIMEOUT if outgoing.timeout is None else outgoing.timeout
        here = self._roster.wait_for_participants(grid, patience)
        if self.buffered:
            return BufferPhase(outgoing, self.telling, self._rule(here, outgoing.round), sent, self.buffered.options)
        is_over, private = self.over_selection > 0, None
        participants = self._roster.idle(grid, here, is_usual=is_over)
        needed = num_chosen(len(here if is_over else participants), self.participation_fraction)
        if self.private:
            chosen, private = self.private.begin(participants, outgoing.round)
            needed = len(chosen)
        elif is_over:  # who was dropped and still works makes the round no smaller
            needed = min(needed, len(participants))
            is_secure = self.secure is not None  # whose threshold is a share of those asked
            count = num_asked(len(participants), needed, self.over_selection, rounds_down=is_secure)
            chosen = choose_more(participants, count, seed=self.seed, round=outgoing.round)
        else:
            chosen = choose(participants, self.participation_fraction, seed=self.seed, round=outgoing.round)
        rule = self._rule(participants, outgoing.round, private)  # by what they said before this round
        asked = self._roster.described(grid, {client_id: participants[client_id] for client_id in chosen})
        if self.secure:
            secure = SecureTrainingPhase(outgoing, asked, self.telling, rule, sent, how=self.secure)
            secure.needed = needed
            return secure
        phase = TrainingPhase(outgoing, asked, self.telling, rule, sent)
        phase.needed = needed
        return phase

    def _rule(
        self, participants: Mapping[str, Member], number: int, private: PrivateRound | None = None
    ) -> AveragingRule:
        announced = tuple(
            participants[name].description.num_support for name in self._roster.announced if name in participants
        )
        return AveragingRule(
            self.weighting,
            self.max_growth,
            self.server_lr,
            self.max_weight,
            announced,
            self.aggregation,
            replace(self.robust, round=number),
            private,
            self.server_optimizer,
            self.server_state,
        )

    def _close_training(self, phase: TrainingPhase) -> RoundResult:
        for client_id in phase.outgrown:
            self._roster.reask(client_id)
        for client_id, num_examples in phase.learned.items():
            self._roster.learn(client_id, num_examples)
        result = self.private.close(phase, phase.private) if self.private and phase.private else phase.close()
        self.server_state = result.server_state
        return result

    def _open_evaluation(
        self, grid: Grid, outgoing: Outgoing, group: EvaluatedGroup, shape: CurveShape | None = None
    ) -> EvaluationPhase:
        self._roster.refresh(grid)
        asked: Mapping[str, Member] = self._roster.judges(grid, group, self.judges)
        if group != "all":  # at the end of a run, whoever is there is waited for
            asked = self._roster.idle(grid, asked, is_usual=self.over_selection > 0)
            if self.buffered and simulated_now(grid) is None:  # who is at work would keep all others waiting
                at_work = self.buffered.at_work
                asked = {name: each for name, each in asked.items() if name not in at_work} or asked
        asked = self._roster.described(grid, asked)
        return EvaluationPhase(outgoing, asked, self.telling, self.max_weight, shape)

    def _quorum(self, asked: int, needed: int | None = None) -> Quorum | None:
        """Return how many replies of so many clients are enough, or None to wait for all; None needs those of all."""
        needed = asked if needed is None else min(needed, asked)
        enough = math.ceil(self.min_reply_fraction * needed)
        return Quorum(enough, self.reply_grace, needed) if enough < asked else None

    def _evaluates_in(self, number: int) -> bool:
        is_shown = self._shown is None or "evaluation" in self._shown
        return is_shown and self.evaluation_interval > 0 and number % self.evaluation_interval == 0

    def _metric_record(self, client_metrics: ClientMetrics, name: str) -> MetricRecord | None:
        """Return averages over clients by this strategy's weights; None without clients, or where they are withheld."""
        if self._shown is not None and name not in self._shown:
            return None
        averages = average(client_metrics, self.weighting, self.max_weight)
        return MetricRecord({**averages.numbers, **averages.curves}) if client_metrics else None
