"""A round with secure aggregation ÷ the same round without: time and bytes, 10 and 100 clients, 1 and 10 M parameters.

    python -m benchmarks.secure_aggregation [--quick]

Clients do nothing but add 1 to each parameter. All of them and the server are in this process and take turns, so that
the time of a round is that of all machines together; a client's own is a column of its own. Replies are taken one at a
time: the memory is that of a few models, whatever the number of clients.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.harness import CLOCKS, Report, parse_options
from nufed.client.secure_rounds import RoundMemory, RoundState
from nufed.common.encoding_task import EncodingTask, model_digest
from nufed.common.privacy.secure import SecureTask
from nufed.common.secure_wire import (
    CONFIRM,
    IDENTITY,
    KEYS,
    ROSTER,
    SHARES,
    UNMASK,
    MaskedReply,
    is_secure,
    read_told,
    told_records,
)
from nufed.common.unsigned_roster import encoded_key, unsigned_roster
from nufed.common.wire import CONFIG, ClientDescription, TrainReply, TrainRequest
from nufed.deploy.run_grid import RunGrid
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.results import RoundResult
from nufed.strategy.secure_phase import SecureAggregation

NUM_LAYERS = 10


class Node:
    """A client that adds 1 to each parameter; holds its round."""

    def __init__(self, name: str) -> None:
        """Make the client's key."""
        self.name = name
        self.rounds = RoundMemory(name, ec.generate_private_key(ec.SECP384R1()), RoundState())
        self._stages: dict[str, Callable[[Message], bytes]] = {
            IDENTITY: lambda _: encoded_key(self.rounds.public_key),
            KEYS: self._keys,
            SHARES: lambda message: self.rounds.share(read_told(message.content)).to_bytes(),
            CONFIRM: lambda message: self.rounds.confirm(read_told(message.content)).to_bytes(),
            UNMASK: lambda message: self.rounds.reveal(read_told(message.content)).to_bytes(),
        }

    def answer(self, message: Message) -> RecordDict:
        """Return the records of the reply to a message."""
        kind = message.metadata.message_type
        if kind == "query":
            return ClientDescription(self.name, "participating", 10, 0, 10).to_records()
        if kind != "train":
            return told_records(self._stages[kind.removeprefix("query.")](message))
        sent = TrainRequest.from_records(message.content).params
        moved = {name: tensor + 1 for name, tensor in sent.items()}
        if not is_secure(message.content):
            return TrainReply(moved, 10).to_records()
        task = EncodingTask.from_config(message.content.config_records[CONFIG])
        sums, weight = task.encode(sent, moved, 10)
        masked = self.rounds.mask(read_told(message.content), sums, weight, model_digest(sent))
        return MaskedReply(masked.to_bytes(), masked.arrays, 10).to_records()

    def _keys(self, message: Message) -> bytes:
        roster = message.content.config_records[CONFIG][ROSTER]
        task = SecureTask.from_bytes(read_told(message.content))
        return self.rounds.advertise(task, unsigned_roster(roster)).to_bytes()  # type: ignore[arg-type] # bytes


class Grid(RunGrid):
    """A Grid whose nodes take turns in this process; holds the seconds that they have worked."""

    def __init__(self, count: int, clock: str) -> None:
        """Make the nodes."""
        super().__init__(Run.create_empty(1))
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._nodes = {1000 + number: Node(f"client-{number:03d}") for number in range(count)}
        self._now, self._sent, self.seconds = CLOCKS[clock], 0, 0.0

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Refuse: replies are streamed."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Refuse: replies are streamed."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return all replies."""
        return list(self.stream_replies(messages, timeout=timeout))

    def stream_replies(self, messages: Iterable[Message], timeout: float | None = None) -> Iterator[Message]:  # noqa: ARG002
        """Yield each reply when its node has worked."""
        messages = list(messages)
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"{self._sent}"
        for message in messages:
            started = self._now()
            records = self._nodes[message.metadata.dst_node_id].answer(message)
            self.seconds += self._now() - started
            yield Message(records, reply_to=message)


def one_round(count: int, size: int, clock: str, *, secure: bool) -> tuple[float, float, RoundResult]:
    """Return the seconds of a round, those of all clients in it, and its result."""
    generator = torch.Generator().manual_seed(0)
    params = {f"layer-{index}": torch.randn(size // NUM_LAYERS, generator=generator) for index in range(NUM_LAYERS)}
    grid = Grid(count, clock)
    strategy = MetaFedAvg(participation_fraction=1.0, secure=SecureAggregation() if secure else None)
    strategy.discover(grid, expected=count)
    grid.seconds, started = 0.0, CLOCKS[clock]()
    result = strategy.train_round(grid, params, 1)
    assert result.counts.replied == count, result.problems
    return CLOCKS[clock]() - started, grid.seconds, result


def main() -> None:
    """Measure everything and print the table."""
    options = parse_options(__doc__.splitlines()[0], repeats=1)
    cases = [(10, 10**5), (100, 10**4)] if options.quick else [(10, 10**6), (10, 10**7), (100, 10**6), (100, 10**7)]
    report, rows = Report.start("secure_aggregation", options), []
    for count, size in cases:
        began = time.perf_counter()
        plain, _, off = one_round(count, size, options.clock, secure=False)
        masked, clients, on = one_round(count, size, options.clock, secure=True)
        assert all(torch.equal(tensor, off.params[name]) for name, tensor in on.params.items())
        assert on.secure is not None
        up, down = on.bytes_up + on.secure.bytes_up, on.bytes_down + on.secure.bytes_down
        ratios = masked / plain, up / off.bytes_up, down / off.bytes_down
        rows.append([count, f"{size:,}", plain, masked, ratios[0], clients / count, masked - clients, *ratios[1:]])
        print(f"{count} x {size:,}: {time.perf_counter() - began:.0f} s", flush=True)
    header = ["clients", "parameters", "off, s", "on, s", "on ÷ off", "a client, s", "server, s", "up ÷", "down ÷"]
    report.add("A round with secure aggregation and without, all machines together; same bytes", header, rows)
    report.write()


if __name__ == "__main__":
    main()
