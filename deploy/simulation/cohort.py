"""Simulation in this process with all clients of a phase as one batched computation.

Server, strategy and codec see what they see everywhere: messages out, a reply from each client back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from nufed.client.app import app as our_client_app
from nufed.client.client_state import ClientState
from nufed.client.workplace import Workplace, workplace
from nufed.common.config import Scalar
from nufed.common.errors import NufedError, RunError
from nufed.common.params import Params
from nufed.common.settings import process_settings
from nufed.common.wire import EvaluateRequest
from nufed.deploy.simulation.cohort_clients import Answer, Assignment, Cohort
from nufed.deploy.simulation.in_process import InProcessGrid
from nufed.deploy.simulation.simulated_grid import ClientTurn, copy_records, own_context, take_turn


class CohortTurns:
    """Takes turns of several clients at once; holds what was found out about their models, and what was said of it."""

    def __init__(self, client_app: ClientApp) -> None:
        """Do what this app does.

        Raises:
            RunError: the ClientApp is not NuFed's own, whose work alone is known here.
        """
        check_own(client_app)
        self._client_app = client_app
        self._cohort = Cohort()

    def take(
        self, messages: Sequence[Message], context_of: Callable[[Message], Context]
    ) -> Iterator[tuple[Message, ClientTurn]]:
        """Yield each message with what its client made of it; whom it cannot batch, it runs one at a time.

        Args:
            messages: one for each client, of any types.
            context_of: gives the context of the client that a message is for.

        Raises:
            NufedError: a client's own explanation of what is wrong with its data or options.
        """
        compute = {MessageType.TRAIN: self._cohort.train, MessageType.EVALUATE: self._cohort.evaluate}
        of_type: dict[str, list[Message]] = {}
        for message in messages:
            of_type.setdefault(message.metadata.message_type, []).append(message)
        for message_type, asked in of_type.items():
            assignments = _assignments(asked, context_of) if message_type in compute else []
            if assignments:
                places = {assignment.number: assignment.place for assignment in assignments}
                for answer in compute[message_type](assignments):
                    message = asked[answer.number]
                    yield message, self._turn(message, context_of(message), answer, places[answer.number])
            assigned = {assignment.number for assignment in assignments}
            for number, message in enumerate(asked):
                if number not in assigned:
                    yield message, take_turn(self._client_app, message, context_of(message))

    def _turn(self, message: Message, context: Context, answer: Answer, place: Workplace) -> ClientTurn:
        if answer.reply is None:
            return take_turn(self._client_app, message, context)
        if answer.kept is not None:
            context = own_context(context, copy_records(context.state))
            ClientState(place, message, context).keep(answer.round, answer.kept)
        return ClientTurn(Message(answer.reply.to_records(), reply_to=message), context.state)


def check_own(client_app: object) -> None:
    """Refuse other apps than NuFed's own.

    Raises:
        RunError: it is another one.
    """
    if client_app is not our_client_app:
        raise RunError(
            "Expected NuFed's own ClientApp (nufed.client.app:app) where several clients are computed at once, without "
            "calling it, but got another one. Use --engine local, or give each actor one client at a time."
        )


class CohortGrid(InProcessGrid):
    """A Grid that trains or evaluates all clients asked in one go; whom it cannot batch, it runs one at a time."""

    computes_ahead = True

    def __init__(self, client_app: ClientApp, *, num_nodes: int, run_config: Mapping[str, Scalar]) -> None:
        """Serve `num_nodes` clients.

        Raises:
            RunError: there is no node, or the ClientApp is not NuFed's own, whose work alone is known here.
        """
        self._cohort = CohortTurns(client_app)
        super().__init__(client_app, num_nodes=num_nodes, run_config=run_config)

    def _turns(self, messages: list[Message]) -> Iterator[tuple[Message, ClientTurn]]:
        return self._cohort.take(messages, lambda message: self._context(message.metadata.dst_node_id))


def _assignments(messages: Sequence[Message], context_of: Callable[[Message], Context]) -> list[Assignment]:
    """Return the work that the messages ask for; those that cannot be read are left out, to fail on their own.

    Raises:
        NufedError: a client's own explanation of what is wrong with its data or options.
    """
    settings = process_settings()
    if torch.get_num_threads() != settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    decoder, assignments = _Decoder(settings.device), []
    for number, message in enumerate(messages):
        try:
            context = context_of(message)
            place = workplace(context.run_config, context.node_config, settings)
            request = decoder.decode(message.content)
            if place.config.method.client_state != "none":
                done = request.round + 1 if message.metadata.message_type == MessageType.EVALUATE else request.round
                place = replace(place, kept=ClientState(place, message, context).before(done))
        except NufedError:
            raise
        except Exception:  # noqa: BLE001, S112 - whatever it is, it is raised again and answered for in the client's own turn
            continue
        work = Assignment(number, place, request.params, request.round, request.shots, request.all_metrics)
        assignments.append(work)
    return assignments


class _Decoder:
    """Reads requests; holds the models read, since the messages of a phase carry one and the same."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._models: dict[tuple[tuple[str, int], ...], Params] = {}

    def decode(self, content: RecordDict) -> EvaluateRequest:
        """Return a request, to train or to evaluate, with its model on the device.

        Raises:
            WireError: it is not a request.
        """
        arrays = next(iter(content.array_records.values()), ArrayRecord())
        key = tuple((name, id(array.data)) for name, array in arrays.items())  # the contents outlive this object
        if key in self._models:
            config_only = RecordDict({**content.config_records, "arrays": ArrayRecord()})
            return replace(EvaluateRequest.from_records(config_only), params=self._models[key])
        request = EvaluateRequest.from_records(content)
        self._models[key] = {name: tensor.to(self._device) for name, tensor in request.params.items()}
        return replace(request, params=self._models[key])


def simulate_as_cohort(
    server_app: ServerApp, client_app: ClientApp, *, num_nodes: int, run_config: Mapping[str, Scalar]
) -> None:
    """Run a ServerApp with `num_nodes` clients that train and evaluate together in this process.

    Both apps find `run_config` in their Context; client i has `partition-id` i in its node config.

    Raises:
        NufedError: raised by either app.
        RunError: there is no node, or the ClientApp is not NuFed's own.
    """
    grid = CohortGrid(client_app, num_nodes=num_nodes, run_config=run_config)
    server_app(grid=grid, context=grid.server_context())
